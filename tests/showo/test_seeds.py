"""Seeds are any integers, taken modulo 2^64, wherever the package takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from showo.seeds import drawing_from, row_seeds, seeded_generator


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


@pytest.mark.parametrize("take", [seeded_generator, lambda seed: row_seeds(seed, 1), lambda seed: row_seeds([seed], 1)])
@pytest.mark.parametrize("seed", [1.5, np.float32(2), "7"])
def test_what_is_no_integer_is_refused(take: Callable[[Any], object], seed: Any) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        take(seed)


def draw(generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(2**62, (3,), generator=generator).tolist())


def test_generators_take_any_integer() -> None:
    assert draw(seeded_generator(-1)) == draw(seeded_generator(np.uint64(2**64 - 1))) != draw(seeded_generator(2**64))
    assert draw(seeded_generator(2**63, 10**6, 1)) == draw(seeded_generator(-(2**63), 10**6, 1))


def test_seeds_and_counters_do_not_meet_by_arithmetic() -> None:
    arguments = [(5,), (5, 0), (0, 5), (5, 0, 0), (5, 1), (6, 0), (5 + 2**32,), (5 + 2**32, 0), (0, 1, 0), (0, 0, 9)]
    assert len({draw(seeded_generator(*numbers)) for numbers in arguments}) == len(arguments)


def test_what_draws_by_itself_follows_a_generator_for_a_while() -> None:
    def drawn(seed: int) -> list[float]:
        with drawing_from(seeded_generator(seed), torch.device("cpu")):
            return torch.rand(3).tolist()

    before = torch.get_rng_state()
    first = drawn(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert drawn(5) == first != drawn(6)
