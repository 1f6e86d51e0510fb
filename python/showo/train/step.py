"""What one step of training computes: a pure function of the weights, the optimizer's state, the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from showo.errors import NotFiniteError
from showo.seeds import seeded_generator
from showo.train.config import LoopConfig
from showo.train.optimizer import learning_rate

# (step, micro-batch of the step, generator) -> (loss to call backward on, figures to log)
LossFunction = Callable[[int, int, torch.Generator], tuple[Tensor, Mapping[str, float]]]


def accumulate_gradients(loss: LossFunction, step: int, config: LoopConfig) -> dict[str, float]:
    """Adds the gradients of the mean loss of a step's micro-batches. Returns that mean and the means of the figures.

    Every micro-batch draws from a generator of its own, so that there is no random state to save or to restore.
    """
    means: dict[str, float] = {}
    device, half = torch.device(config.device).type, config.precision == "bf16"
    for micro in range(config.accumulate):
        generator = seeded_generator(config.seed, step, micro)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            value, figures = loss(step, micro, generator)
        (value / config.accumulate).backward()
        for name, figure in {"loss": float(value.detach()), **figures}.items():
            means[name] = means.get(name, 0.0) + figure / config.accumulate
    return means


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: LossFunction, step: int, config: LoopConfig
) -> dict[str, float]:
    """Changes weights and optimizer state by one step. Returns figures to log: loss, lr, grad_norm and those of `loss`.

    Raises NotFiniteError, with the weights as they were, where the loss or its gradient is not finite. The message
    counts steps from 1, as the log does.
    """
    rate = learning_rate(config.optimizer, step, config.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    figures = accumulate_gradients(loss, step, config)
    limit = config.optimizer.max_grad_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    if not (math.isfinite(norm) and math.isfinite(figures["loss"])):
        raise NotFiniteError(f"step {step + 1}: loss {figures['loss']}, gradient norm {norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": figures.pop("loss"), "lr": rate, **figures, "grad_norm": norm}
