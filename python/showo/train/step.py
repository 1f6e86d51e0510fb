"""What one step of training computes: a pure function of the weights, the optimizer's state, the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from showo.data.faults import Drawn
from showo.data.tally import Tally
from showo.seeds import seeded_generator
from showo.train.config import LoopConfig
from showo.train.optimizer import learning_rate


class MicroBatch(Protocol):
    """A part of a step's rows, as large as the device takes at once.

    counts: by stream, what the targets of this part weigh in the mean of that stream's loss: their number, as a rule.
    tally: what the rows hold, for the log. drawn: by stream, which samples they have, and which were skipped.
    """

    @property
    def counts(self) -> Mapping[str, float]: ...

    @property
    def tally(self) -> Tally: ...

    @property
    def drawn(self) -> Mapping[str, Sequence[Drawn[None]]]: ...


B = TypeVar("B", bound=MicroBatch)

# (micro-batch, counts of the whole step, generator) -> (loss to call backward on, figures to log). Both are summands:
# a loss is a mean over the targets of the whole step, so over its micro-batches they add up to the step's.
LossFunction = Callable[[B, Mapping[str, float], torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]


def counts_of_step(micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
    """The counts of a step's micro-batches, added up."""
    totals: dict[str, float] = {}
    for micro_batch in micro_batches:
        for name, count in micro_batch.counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def accumulate_gradients(
    loss: LossFunction[B], micro_batches: Sequence[B], step: int, config: LoopConfig
) -> dict[str, Tensor]:
    """Adds the gradients of a step's loss, micro-batch by micro-batch. Returns the loss and the figures of the step.

    Every micro-batch draws from a generator of its own, so that there is no random state to save or to restore.
    """
    sums: dict[str, Tensor] = {}
    counts = counts_of_step(micro_batches)
    device, half = torch.device(config.device).type, config.precision == "bf16"
    for micro, micro_batch in enumerate(micro_batches):
        generator = seeded_generator(config.seed, step, micro)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            value, figures = loss(micro_batch, counts, generator)
        value.backward()
        for name, figure in {"loss": value, **figures}.items():
            sums[name] = sums[name] + figure.detach() if name in sums else figure.detach()
    return sums


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: LossFunction[B],
    micro_batches: Sequence[B],
    step: int,
    config: LoopConfig,
) -> dict[str, Tensor]:
    """Changes weights and optimizer state by one step. Returns loss, the figures of `loss`, grad_norm and finite.

    Where the loss or the norm of its gradient is not finite, the step is skipped: weights and state stay what they
    are, and `finite` is false. Nothing here waits for the device: the optimizer (one of torch's fused ones) asks for
    `found_inf` there.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.optimizer, step, config.steps)
    figures = accumulate_gradients(loss, micro_batches, step, config)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if config.optimizer.max_grad_norm:
        clip_grads_with_norm_(parameters, config.optimizer.max_grad_norm, norm)
    finite = figures["loss"].isfinite() & norm.isfinite()
    # As torch's GradScaler does it: optimizers whose step has no argument for these two read them as attributes.
    optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**figures, "grad_norm": norm, "finite": finite}
