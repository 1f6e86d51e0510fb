"""What is hidden and what is asked for, against the official formulas written out by hand."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
import torch
from torch import Tensor

from showo.batch import IGNORE
from showo.data.corruption import Corrupted, Corruption, ObjectiveConfig, Region, corrupt, draw_corruption
from showo.errors import ConfigError
from showo.intervals import check_intervals
from showo.tokens import Vocabulary

VOCAB = Vocabulary(40, 64)
GRID = (4, 6)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(*VOCAB.image_range, (5, 24))


def draw(config: ObjectiveConfig, count: int, seed: int = 0) -> list[Corruption]:
    return [draw_corruption(config, GRID, Random(seed * 1000 + i)) for i in range(count)]


def run(ids: Tensor, config: ObjectiveConfig, corruptions: list[Corruption] | None = None) -> Corrupted:
    return corrupt(ids, corruptions or draw(config, len(ids)), config, VOCAB, GRID)


def test_by_default_hidden_codes_are_masked_and_asked_for(ids: Tensor) -> None:
    corruptions = draw(ObjectiveConfig(), 5)
    inputs, targets, weights, hidden = run(ids, ObjectiveConfig(), corruptions)
    assert torch.equal(inputs, torch.where(hidden, VOCAB.mask_id, ids))
    assert torch.equal(targets, torch.where(hidden, ids, IGNORE))
    assert weights is None
    assert hidden.sum(1).tolist() == [max(1, round(24 * each.ratio)) for each in corruptions]


@pytest.mark.parametrize(
    ("name", "share"),
    [("cosine", lambda t: math.cos(math.pi * t / 2)), ("linear", lambda t: 1 - t), ("pow2", lambda t: 1 - t * t)],
)
def test_shares_follow_the_schedule(name: str, share: object) -> None:
    """The share at a uniform t: its quantiles are the schedule's values, backwards."""
    ratios = sorted(each.ratio for each in draw(ObjectiveConfig(mask_schedule=name), 4000))
    for q in (0.1, 0.5, 0.9):
        assert ratios[int(q * 4000)] == pytest.approx(share(1 - q), abs=0.03)  # type: ignore[operator]


def test_min_masking_rate_raises_the_share() -> None:
    config = ObjectiveConfig(min_masking_rate=0.6)
    plain, raised = draw(ObjectiveConfig(), 200), draw(config, 200)
    assert [each.ratio for each in raised] == [max(0.6, each.ratio) for each in plain]
    assert sum(each.ratio == 0.6 for each in raised) > 20


def test_held_out_pictures_take_ratios_in_turn() -> None:
    config = ObjectiveConfig(eval_mask_ratios=(0.1, 0.5, 0.9), min_masking_rate=0.3)
    assert [config.held_out_ratio(i) for i in range(5)] == [0.1, 0.5, 0.9, 0.1, 0.5]
    assert ObjectiveConfig().held_out_ratio(3) is None
    drawn = draw_corruption(config, GRID, Random(1), ratio=0.1)
    assert drawn.ratio == 0.1  # what is asked for is not raised
    assert drawn.seed == draw_corruption(config, GRID, Random(1), ratio=0.9).seed


@pytest.mark.parametrize("noise", ["mask", "random_replace"])
def test_all_codes_are_predicted_with_the_official_weight(ids: Tensor, noise: str) -> None:
    config = ObjectiveConfig(predict_all_tokens=noise == "mask", noise_type=noise)
    corruptions = draw(config, 5)
    inputs, targets, weights, hidden = run(ids, config, corruptions)
    assert torch.equal(targets, ids)
    assert weights is not None
    t = torch.tensor([each.ratio for each in corruptions])
    official = 1 - (1 - hidden.long()) * ((1 - t) * (1 - 0.3))[:, None]
    torch.testing.assert_close(weights, official)
    assert torch.equal(inputs[~hidden], ids[~hidden])
    gentle = run(ids, ObjectiveConfig(predict_all_tokens=True, min_loss_weight=0.0), corruptions).weights
    torch.testing.assert_close(gentle, torch.where(hidden, 1.0, t[:, None]))


def test_random_codes_replace_hidden_ones() -> None:
    ids = torch.full((400, 24), VOCAB.image_offset)
    config = ObjectiveConfig(noise_type="random_replace")
    inputs, _, _, hidden = run(ids, config)
    new = inputs[hidden] - VOCAB.image_offset
    assert 0 <= int(new.min()) <= int(new.max()) < 64
    counts = torch.bincount(new, minlength=64).float()
    expected = hidden.sum() / 64
    assert ((counts - expected).abs() < 6 * expected.sqrt()).all()
    rows = [row[mask] for row, mask in zip(inputs, hidden)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(rows[:10], 2))


def test_a_region_is_a_rectangle_of_about_that_many_codes(ids: Tensor) -> None:
    config = ObjectiveConfig(mask_contiguous_region_prob=1.0)
    regions = set()
    for seed in range(60):
        corruptions = draw(config, 5, seed)
        inputs, targets, _, hidden = run(ids, config, corruptions)
        assert torch.equal(inputs == VOCAB.mask_id, hidden)
        assert torch.equal(targets != IGNORE, hidden)
        for each, row in zip(corruptions, hidden.view(-1, *GRID)):
            assert each.region is not None
            top, left, height, width = each.region
            rectangle = torch.zeros(GRID, dtype=torch.bool)
            rectangle[top : top + height, left : left + width] = True
            assert torch.equal(row, rectangle)
            count = max(1, round(24 * each.ratio))
            assert math.ceil(count / 6) <= height <= min(4, count)
            assert width == math.ceil(count / height)
            assert 0 <= top <= 4 - height
            assert 0 <= left <= 6 - width
            regions.add(each.region)
    assert {region.height for region in regions} == {1, 2, 3, 4}
    assert {region.top for region in regions if region.height == 2} == {0, 1, 2}
    assert {region.left for region in regions if region.width == 4} == {0, 1, 2}


def test_a_share_of_the_pictures_has_a_region() -> None:
    drawn = draw(ObjectiveConfig(mask_contiguous_region_prob=0.25), 2000)
    assert sum(each.region is not None for each in drawn) == pytest.approx(500, abs=100)
    assert [each.ratio for each in drawn] == [each.ratio for each in draw(ObjectiveConfig(), 2000)]


def test_a_picture_does_not_depend_on_its_neighbours(ids: Tensor) -> None:
    config = ObjectiveConfig(noise_type="random_replace", mask_contiguous_region_prob=0.5)
    corruptions = draw(config, 5)
    together = run(ids, config, corruptions)
    for i in (4, 1):
        alone = run(ids[i : i + 1], config, corruptions[i : i + 1])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))  # type: ignore[index]


def test_ids_that_stand_for_later_codes_are_kept(ids: Tensor) -> None:
    later = torch.arange(VOCAB.size, VOCAB.size + 24)[None]
    inputs, targets, _, hidden = run(later, ObjectiveConfig(), [Corruption(0.5, 3, Region(1, 1, 2, 2))])
    assert torch.equal(inputs, torch.where(hidden, VOCAB.mask_id, later))
    assert torch.equal(targets, torch.where(hidden, later, IGNORE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_schedule": "square"}, r"objective\.mask_schedule: schedule must be cosine"),
        ({"noise_type": "blur"}, r"objective\.noise_type must be mask or random_replace, got 'blur'"),
        ({"min_masking_rate": 1.5}, "min_masking_rate must be at least 0 and at most 1, got 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"eval_mask_ratios": (0.5, -1.0)}, "eval_mask_ratios must be at least 0 and at most 1"),
        ({"mask_contiguous_region_prob": math.nan}, "mask_contiguous_region_prob"),
        ({"min_loss_weight": -0.1}, "min_loss_weight"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], message: str) -> None:
    config = ObjectiveConfig(**changes)  # type: ignore[arg-type]
    check = check_intervals if isinstance(next(iter(changes.values())), (float, tuple)) else ObjectiveConfig.check
    with pytest.raises(ConfigError, match=message):
        check(config)
