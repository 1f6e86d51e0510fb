"""How many places stay masked after each step of a generation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch

from showo.errors import UserError

Schedule = Callable[[torch.Tensor], torch.Tensor]

_POW = re.compile(r"pow(\d+(\.\d+)?)")


def mask_schedule(name: str) -> Schedule:
    """Masked share by progress (0 to 1): "cosine", "linear", "sigmoid", or "pow<exponent>" such as "pow2"."""
    if name == "cosine":
        return lambda t: torch.cos(t * math.pi * 0.5)
    if name == "linear":
        return lambda t: (1 - t).clamp(1e-6, 1.0)
    if name == "sigmoid":
        return _sigmoid
    if (match := _POW.fullmatch(name)) and 0 < float(match[1]) < math.inf:
        exponent = float(match[1])
        return lambda t: (1.0 - t**exponent).clamp(1e-6, 1.0)
    raise UserError(f"schedule must be cosine, linear, sigmoid or pow<exponent> (pow2), got {name!r}")


def _sigmoid(t: torch.Tensor) -> torch.Tensor:
    low, high = torch.sigmoid(torch.tensor(-3.0)), torch.sigmoid(torch.tensor(3.0))
    return ((high - torch.sigmoid(6 * t - 3)) / (high - low)).clamp(1e-6, 1.0)


def mask_lengths(unknown: list[int], places: int, steps: int, schedule: Schedule) -> list[list[int]]:
    """Places left masked after each step, for rows that begin with `unknown` masked places of `places`.

    The official rule: floor(places * share), at least 1 and at most one less than are masked now. Two repairs: a row
    with nothing to fill stays as it is, and shares are counted in fp32, as the official code does.
    """
    left = list(unknown)
    lengths = []
    for step in range(steps):
        share = schedule(torch.tensor((step + 1) / steps))
        target = int((places * share).floor())
        left = [min(max(1, min(target, count - 1)), count) for count in left]
        lengths.append(left)
    return lengths
