"""Seeds: everywhere any integer, also a NumPy one, taken modulo 2^64 (so -1 is 2^64 - 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from showo.errors import UserError


def seeded_generator(seed: int) -> torch.Generator:
    """torch's generator on the CPU, which itself takes integers of 64 bits only."""
    return torch.Generator().manual_seed(int(seed) % 2**64)


def row_seeds(seed: int | Sequence[int], batch: int) -> Tensor:
    """int64 [batch], a seed for each row of a batch as showo_ext takes them: `seed` counting up, or the given ones."""
    values = [int(value) for value in seed] if isinstance(seed, Iterable) else [int(seed) + i for i in range(batch)]
    if len(values) != batch:
        raise UserError(f"seed must be one number or {batch}, got {len(values)}")
    return torch.tensor([value % 2**64 for value in values], dtype=torch.uint64).view(torch.int64)
