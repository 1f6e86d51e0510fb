"""What one step of training computes: a pure function of the weights, the optimizer's state, the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from showo.seeds import seeded_generator
from showo.train.clock import StepClock
from showo.train.config import LoopConfig
from showo.train.facts import MicroBatch
from showo.train.optimizer import learning_rate
from showo.train.parallel import Parallel, local_part

B = TypeVar("B", bound=MicroBatch)

# (micro-batch, counts of the whole step, generator) -> (loss to call backward on, figures to log). Both are summands:
# a loss is a mean over the targets of the whole step, so over its micro-batches and ranks they add up to the step's.
# The figures have the same names on all ranks, whatever their rows.
LossFunction = Callable[[B, Mapping[str, float], torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]


def accumulate_gradients(
    parallel: Parallel,
    loss: LossFunction[B],
    micro_batches: Sequence[B],
    counts: Mapping[str, float],
    step: int,
    config: LoopConfig,
    clock: StepClock,
) -> dict[str, Tensor]:
    """Adds the gradients of a step's loss, micro-batch by micro-batch, and those of all ranks in the last one.

    Returns this rank's summands of the loss and of the figures of the step. Every micro-batch of a rank draws from a
    generator of its own, so that there is no random state to save or to restore.
    """
    sums: dict[str, Tensor] = {}
    rank, count = parallel.ranks.rank, parallel.ranks.count
    device, half = torch.device(config.device).type, config.precision == "bf16" and parallel.autocast
    for micro, micro_batch in enumerate(micro_batches):
        generator = seeded_generator(config.seed, step, micro, *([rank] if rank else []))
        with parallel.adding_up(last=micro == len(micro_batches) - 1):
            with clock.part("forward"), torch.autocast(device, torch.bfloat16, enabled=half):
                value, figures = loss(micro_batch, counts, generator)
            with clock.part("backward"):
                (value * count if count > 1 else value).backward()  # DDP and FSDP divide by the number of ranks
        for name, figure in {"loss": value, **figures}.items():
            sums[name] = sums[name] + figure.detach() if name in sums else figure.detach()
    return sums


def train_step(
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    loss: LossFunction[B],
    micro_batches: Sequence[B],
    counts: Mapping[str, float],
    step: int,
    config: LoopConfig,
    clock: StepClock,
) -> dict[str, Tensor]:
    """Changes weights and optimizer state by one step. Returns loss, the figures of `loss`, grad_norm and finite.

    micro_batches: of this rank. counts: of all micro-batches of all ranks together. clock: takes the time of the parts
    `forward`, `backward` (in which gradients of several ranks travel), `communication` (what travels besides) and
    `optimizer`.

    Where the loss or the norm of its gradient is not finite, the step is skipped on all ranks: weights and state stay
    what they are, and `finite` is false. Nothing here waits for the device: the optimizer (one of torch's fused ones)
    asks for `found_inf` there.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.optimizer, step, config.steps)
    figures = accumulate_gradients(parallel, loss, micro_batches, counts, step, config, clock)
    parameters = [p for p in parallel.model.parameters() if p.grad is not None]
    with clock.part("optimizer"):
        norm = get_total_norm([local_part(p.grad) for p in parameters if p.grad is not None])
    with clock.part("communication"):
        figures, norm = _of_all_ranks(parallel, figures, norm)
    with clock.part("optimizer"):
        if config.optimizer.max_grad_norm:
            clip_grads_with_norm_(parameters, config.optimizer.max_grad_norm, norm)
        finite = figures["loss"].isfinite() & norm.isfinite()
        # As torch's GradScaler does it: optimizers whose step has no argument for these two read them as attributes.
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {**figures, "grad_norm": norm, "finite": finite}


def _of_all_ranks(parallel: Parallel, figures: dict[str, Tensor], norm: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The figures of the step, and the norm of its whole gradient. norm: of what this rank has of it, or its copy."""
    if parallel.ranks.count == 1:
        return figures, norm
    square = norm.to(figures["loss"].device).double().square() / parallel.copies
    summed = parallel.ranks.summed({**figures, "square": square})
    return summed, summed.pop("square").sqrt()
