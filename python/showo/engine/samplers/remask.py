"""Tokens that were chosen may be masked and drawn again (ReMDM with a capped rate, arXiv 2503.00307).

Let a be the share of places that the schedule has settled before a step and b the share after it. A settled token is
masked again with probability s = min(cap, (1 - b) / a); a masked place gets a token with probability
(b - (1 - s) * a) / (1 - a), which leaves the share of settled places at b on the average. Every place is decided on its
own, by one uniform number. Tokens of the canvas that was given are never masked. The last step settles all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo.engine.samplers.filling import Drawn, Filling, Prediction, Sampler
from showo.engine.schedule import Schedule
from showo_ext.reference.philox import STREAM_REMASK, uniforms


def rates(schedule: Schedule, steps: int, cap: float) -> list[tuple[float, float]]:
    """Of each step, the probability that a masked place gets a token and that a settled one is masked again."""
    share = [min(1.0, max(0.0, 1 - float(schedule(torch.tensor(step / steps))))) for step in range(steps)]
    share[0] = 0.0
    result = []
    for before, after in zip(share, [*share[1:], 1.0], strict=True):
        again = min(cap, (1 - after) / before) if before > 0 else 0.0
        fill = (after - (1 - again) * before) / (1 - before) if before < 1 else 1.0
        result.append((fill, again))
    return result


class Remask(Sampler):
    """cap: the greatest probability with which a token is masked again in a step."""

    def __init__(self, filling: Filling, cap: float) -> None:
        device = filling.canvas.device
        batch, places = filling.canvas.shape
        chances = filling.on_device(rates(filling.schedule, filling.steps, cap), torch.float64)
        self.filling = filling
        self.wanted = filling.canvas == filling.mask_id
        self.fill, self.again = chances.unbind(1)
        self.numbers = torch.arange(filling.steps, device=device)
        self.chance = torch.stack(  # [steps, B, N]
            [uniforms(filling.seeds, STREAM_REMASK, step, batch, 1, places, device)[:, 0] for step in self.numbers]
        )

    def step(self, step: int, prediction: Prediction, canvas: Tensor) -> Drawn:
        filling = self.filling
        chance = self.chance[step] if prediction.place_noise is None else prediction.place_noise
        masked = canvas == filling.mask_id
        drawn = filling.draw_at(masked & (chance < self.fill[step]), step, self.numbers[step], prediction, canvas)
        again = self.wanted & ~masked & (chance < self.again[step])
        return Drawn(drawn.ids.masked_fill(again, filling.mask_id), drawn.masked | again, drawn.sampled)
