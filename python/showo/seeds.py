"""Seeds: everywhere any integer, also a NumPy one, taken modulo 2^64 (so -1 is 2^64 - 1)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index

import numpy as np
import torch
from torch import Tensor

from showo.errors import UserError


def seeded_generator(seed: int, *counters: int) -> torch.Generator:
    """torch's generator on the CPU for a seed and for counters from 0 on, such as the number of a step.

    Seed and counters are hashed, not added up, so that no two uses draw the same by arithmetic: there is no random
    state to carry, to save or to restore.
    """
    return torch.Generator().manual_seed(int(hashed_words(seed, *counters)[0]))


def seeded_random(seed: int, *counters: int) -> random.Random:
    """Python's generator for a seed and for counters, hashed as for `seeded_generator`: quick for single draws."""
    return random.Random(int(hashed_words(seed, *counters)[0]))


@contextmanager
def drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Meanwhile what draws from torch's own generators of the CPU and of `device`, such as dropout, follows `generator`
    alone. Afterwards those generators are as they were.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        yield


def hashed_words(seed: int, *counters: int, count: int = 1) -> np.ndarray:
    """uint64 [count], hashes of a seed and of counters from 0 on."""
    return np.random.SeedSequence(index(seed) % 2**64, spawn_key=counters).generate_state(count, np.uint64)


def row_seeds(seed: int | Sequence[int], batch: int) -> Tensor:
    """int64 [batch], a seed for each row of a batch as showo_ext takes them: `seed` counting up, or the given ones."""
    values = [index(value) for value in seed] if isinstance(seed, Iterable) else [index(seed) + i for i in range(batch)]
    if len(values) != batch:
        raise UserError(f"seed must be one number or {batch}, got {len(values)}")
    return torch.tensor([value % 2**64 for value in values], dtype=torch.uint64).view(torch.int64)
