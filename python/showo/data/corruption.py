"""What training hides of a picture's codes, and what it asks for: mask-token prediction and its options.

Of every picture a share of the codes is hidden: schedule(t) with t uniform in [0, 1), which for the cosine schedule is
cos(pi t / 2) (MaskGIT, arXiv 2202.04200; the keys of `ObjectiveConfig` are those of showlab/Show-o, training/utils.py,
`mask_or_random_replace_tokens`). What is drawn for a picture is a `Corruption`, a pure function of the generator that
belongs to the picture, so that a row is the same in whatever batch or process it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from showo.batch import IGNORE
from showo.engine.schedule import mask_schedule
from showo.errors import ConfigError, UserError
from showo.intervals import SHARE, SHARE_BELOW_ONE, within
from showo.tokens import Vocabulary
from showo_ext import corrupt_tokens


@dataclass
class ObjectiveConfig:
    """How codes are hidden, and what is learned of them. Keys and defaults are official but for the last three.

    mask_schedule: the hidden share by t: cosine, linear, sigmoid, or pow<exponent>.
    min_masking_rate: the share is raised to at least this.
    mask_contiguous_region_prob: probability that a picture's hidden codes fill a rectangle instead of lying anywhere.
    noise_type: hidden codes become the mask token (mask), or random codes (random_replace). Nobody can tell a random
        code from a true one, so then all codes are predicted.
    predict_all_tokens: codes that are not hidden are predicted too, with the weight of `min_loss_weight`.
    label_smoothing: of the cross-entropy, in all streams.
    eval_mask_ratios: shares that held-out pictures take in turn, so that validation always asks the same; without any
        they are drawn as in training.
    min_loss_weight: m in the weight 1 - (1 - m) (1 - share) of a code that is not hidden; a hidden one weighs 1.
    keep_earlier: a row of texts and pictures in turn ends with any of its pictures after the first, whose codes are
        hidden as ever, and of the earlier ones a single code is: what is drawn next then follows whole pictures, as
        when a model goes on with a story. Without it, all pictures of a row are hidden alike.
    """

    mask_schedule: str = "cosine"
    min_masking_rate: float = within(SHARE, 0.0)
    mask_contiguous_region_prob: float = within(SHARE, 0.0)
    noise_type: str = "mask"
    predict_all_tokens: bool = False
    label_smoothing: float = within(SHARE_BELOW_ONE, 0.0)
    eval_mask_ratios: tuple[float, ...] = within(SHARE, ())
    min_loss_weight: float = within(SHARE, 0.3)
    keep_earlier: bool = False

    def check(self) -> None:
        """Raises ConfigError for a name that is not known; `check_intervals` checks the numbers."""
        try:
            mask_schedule(self.mask_schedule)
        except UserError as error:
            raise ConfigError(f"objective.mask_schedule: {error}") from error
        if self.noise_type not in ("mask", "random_replace"):
            raise ConfigError(f"objective.noise_type must be mask or random_replace, got {self.noise_type!r}")

    @property
    def learns_all(self) -> bool:
        """Whether codes that are not hidden are predicted too."""
        return self.predict_all_tokens or self.noise_type == "random_replace"

    def held_out_ratio(self, number: int) -> float | None:
        """The share of held-out picture `number`; None where it is to be drawn as in training."""
        return self.eval_mask_ratios[number % len(self.eval_mask_ratios)] if self.eval_mask_ratios else None


class Region(NamedTuple):
    """A rectangle of a picture's grid of codes."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Corruption:
    """What is drawn for one picture. ratio: hidden share. seed: of which codes. region: these instead, if not None."""

    ratio: float
    seed: int
    region: Region | None = None


def draw_corruption(
    config: ObjectiveConfig, grid: tuple[int, int], draw: Random, *, ratio: float | None = None
) -> Corruption:
    """Draws for a picture of grid = (height, width) codes. ratio: the share, where it is given and not drawn."""
    if ratio is None:
        drawn = float(mask_schedule(config.mask_schedule)(torch.tensor(draw.random())))
        ratio = max(config.min_masking_rate, drawn)
    seed = draw.getrandbits(63)
    contiguous = draw.random() < config.mask_contiguous_region_prob
    return Corruption(ratio, seed, _draw_region(ratio, grid, draw) if contiguous else None)


def _draw_region(ratio: float, grid: tuple[int, int], draw: Random) -> Region:
    """A rectangle of at least as many codes as the share asks for: its height is drawn, then the width follows, then
    its place is drawn (as officially)."""
    rows, columns = grid
    count = max(1, round(rows * columns * ratio))
    height = draw.randint(math.ceil(count / columns), min(rows, count))
    width = math.ceil(count / height)
    return Region(draw.randint(0, rows - height), draw.randint(0, columns - width), height, width)


class Corrupted(NamedTuple):
    """inputs: int64 [B, N], what the model sees. targets: int64 [B, N], the true ids, -100 where none is asked for.

    weights: float32 [B, N] of the targets, or None where all weigh 1. hidden: bool [B, N].
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    hidden: Tensor


def corrupt(
    ids: Tensor,
    corruptions: Sequence[Corruption],
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    grid: tuple[int, int],
) -> Corrupted:
    """Hides codes of the pictures whose ids are int64 [B, N], N = height * width of the grid, row by row.

    Without a region max(1, round(N * share)) codes are hidden, every subset being equally likely.
    """
    ratios = torch.tensor([each.ratio for each in corruptions], dtype=torch.float32)
    seeds = torch.tensor([each.seed for each in corruptions], dtype=torch.int64)
    _, _, hidden = corrupt_tokens(ids, ratios, vocabulary.mask_id, seed=seeds)
    for row, each in zip(hidden, corruptions, strict=True):
        if each.region is not None:
            top, left, height, width = each.region
            row.fill_(False).view(grid)[top : top + height, left : left + width] = True
    inputs = torch.where(hidden, _noise(ids, seeds, config, vocabulary), ids)
    if not config.learns_all:
        return Corrupted(inputs, ids.masked_fill(~hidden, IGNORE), None, hidden)
    seen = 1 - (1 - config.min_loss_weight) * (1 - ratios)
    return Corrupted(inputs, ids, torch.where(hidden, 1.0, seen[:, None]), hidden)


def _noise(ids: Tensor, seeds: Tensor, config: ObjectiveConfig, vocabulary: Vocabulary) -> Tensor:
    """What hidden codes become: [B, N]."""
    if config.noise_type == "mask":
        return torch.full_like(ids, vocabulary.mask_id)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    rows = [torch.randint(*vocabulary.image_range, ids.shape[1:], generator=each) for each in generators]
    return torch.stack(rows) if rows else ids
