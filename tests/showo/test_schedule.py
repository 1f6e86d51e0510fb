"""Schedules and temperatures against the official loop, computed by its own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from showo.engine.samplers.confidence import official_temperatures
from showo.engine.samplers.linear_temperature import linear_temperatures
from showo.engine.schedule import mask_lengths, mask_schedule


@pytest.mark.parametrize("steps", [1, 4, 12, 18, 50])
@pytest.mark.parametrize("places", [64, 256, 1024])
def test_lengths_follow_the_official_rule(steps: int, places: int) -> None:
    lengths = [row[0] for row in mask_lengths([places], places, steps, mask_schedule("cosine"))]
    unknown = places
    for step in range(steps):
        ratio = torch.cos(torch.tensor((step + 1) / steps) * math.pi * 0.5)
        expected = max(1, min(unknown - 1, int((places * ratio).floor())))
        assert lengths[step] == expected
        unknown = expected


def test_known_rows_stay_known() -> None:
    lengths = mask_lengths([0, 1, 2, 16], 16, 4, mask_schedule("linear"))
    assert [row[0] for row in lengths] == [0, 0, 0, 0]
    assert [row[1] for row in lengths] == [1, 1, 1, 1]  # refilled, as officially
    assert [row[2] for row in lengths] == [1, 1, 1, 1]
    assert [row[3] for row in lengths] == [12, 8, 4, 1]


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid", "pow2", "pow0.5", "pow3.5"])
def test_schedules_fall_from_one_to_zero(name: str) -> None:
    t = torch.linspace(0, 1, 101)
    share = mask_schedule(name)(t)
    assert share[0].item() == pytest.approx(1, abs=1e-3)
    assert share[-1].item() == pytest.approx(0, abs=1e-3)
    assert (share.diff() <= 0).all()
    assert mask_schedule("pow2")(torch.tensor(0.5)).item() == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["", "cos", "pow", "pow-1", "pow0", "powx", "pow2x", "pow" + 400 * "9"])
def test_unknown_schedules(name: str) -> None:
    with pytest.raises(ValueError, match="schedule must be"):
        mask_schedule(name)


def test_temperatures() -> None:
    official = official_temperatures(2.0, 18)
    product = 2.0
    for step, value in enumerate(official):
        product *= 1 - (step + 1) / 18
        assert value == pytest.approx(product)
    assert official[3] == pytest.approx(2 * 0.54, abs=0.02)
    assert official[8] == pytest.approx(2 * 0.04, abs=0.02)
    assert official[-1] == 0
    assert linear_temperatures(1.0, 4) == [0.75, 0.5, 0.25, 0.0]
