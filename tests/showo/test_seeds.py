"""Seeds are any integers, taken modulo 2^64, wherever the package takes one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from showo.seeds import row_seeds, seeded_generator
from showo.train.loop import step_generator


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (2**64 - 2, [-2, -1, 0]),
        (2**63 - 1, [2**63 - 1, -(2**63), 1 - 2**63]),
        (np.int64(-1), [-1, 0, 1]),
        ([np.uint64(2**64 - 1), -1, 2**65], [-1, -1, 0]),
    ],
)
def test_rows_count_up_modulo_two_to_64(seed: int, expected: list[int]) -> None:
    assert row_seeds(seed, 3).tolist() == expected


def test_generators_take_any_integer() -> None:
    def draw(generator: torch.Generator) -> list[int]:
        return torch.randint(2**62, (3,), generator=generator).tolist()

    assert draw(seeded_generator(-1)) == draw(seeded_generator(2**64 - 1)) != draw(seeded_generator(2**64))
    step_generator(2**63, 10**6, 1)
