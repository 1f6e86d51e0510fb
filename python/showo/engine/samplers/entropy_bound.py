"""As many places a step as a budget of entropy allows (EB-Sampler, arXiv 2505.24857).

Codes drawn in one step are drawn as if independent. What that costs is bounded by the entropies of the places drawn
together, without the greatest of them. So places are taken in the order of their entropy H, the surest first: the
longest prefix U with sum(H of U) - max(H of U) <= gamma. That is at least one place a step; where the picture follows
from what is there already it is many, and the picture is done before the steps are used up. The last step draws all
that is left. The schedule plays no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo.engine.samplers.filling import Drawn, Filling, Prediction, Sampler


def within_budget(entropy: Tensor, masked: Tensor, gamma: float) -> Tensor:
    """bool [B, N], the masked places to draw next, of entropies [B, N] in nats; equal ones by lower index."""
    ordered, order = entropy.double().masked_fill(~masked, torch.inf).sort(dim=1, stable=True)
    before = ordered.cumsum(1).roll(1, 1)  # of a rising order, the sum without the greatest
    before[:, :1] = 0
    return (before <= gamma).gather(1, order.argsort(1)) & masked


class EntropyBound(Sampler):
    """gamma: the budget, in nats."""

    ends_early = True

    def __init__(self, filling: Filling, gamma: float) -> None:
        self.filling = filling
        self.gamma = gamma
        self.numbers = torch.arange(filling.steps, device=filling.canvas.device)

    def step(self, step: int, prediction: Prediction, canvas: Tensor) -> Drawn:
        places = canvas == self.filling.mask_id
        if step + 1 < self.filling.steps:
            logits = self.filling.guided(step, prediction)
            if 0 < self.filling.top_k < logits.shape[-1]:
                logits = logits.topk(self.filling.top_k).values
            places = within_budget(torch.special.entr(logits.softmax(-1)).sum(-1), places, self.gamma)
        return self.filling.draw_at(places, step, self.numbers[step], prediction, canvas)
