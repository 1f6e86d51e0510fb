"""`showo train --dry-run` and `showo plan`: what a training reads, opened and looked at; nothing is trained.

What is not there, such as data of another machine, is named, and planned for as well as it can be: of a stream whose
data are all there, rows are made and counted; rows of another one are taken to be full of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from showo.batch import Batch
from showo.data.faults import FaultLog
from showo.data.rows import PictureIds
from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.data.streams import RowStream
from showo.errors import ConfigError, MissingCheckpointError, MissingDataError
from showo.model.clip import CLIP_VIT_L_336, ClipTower
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.transformer import Showo
from showo.model.weights import resolve_folder
from showo.tokens import TextTokenizer
from showo.train.config import ShowoTraining
from showo.train.config.streams import Stream
from showo.train.full_rows import full_rows
from showo.train.initial import newest_checkpoint
from showo.train.inspection import first_row
from showo.train.plan.flops import Rows, count_flops
from showo.train.row_streams import RowStreams, TowerSizes, check_codes, code_side
from showo.train.showo import check_fit, choose_learned, open_tower

LOOKED_AT = 64  # rows of each stream, of which a row's mean is taken
T = TypeVar("T")


@dataclass(frozen=True)
class PlannedSource:
    """A source of a stream. samples: None where it is not there; `missing` says what is not."""

    name: str
    layout: str
    share: float
    samples: int | None
    missing: str = ""


@dataclass(frozen=True)
class PlannedStream:
    """A stream of a training. row: a row's mean. looked_at: rows that it is the mean of; 0: it is a full row.

    drawn: the first row as text; "" where none could be made.
    """

    name: str
    rows: int
    data: Sequence[PlannedSource]
    held_out: Sequence[PlannedSource]
    row: Rows
    looked_at: int = 0
    drawn: str = ""


class DryRun:
    """A training, opened as far as its files are here; its model is on the meta device, where it takes no memory.

    missing: a line for each file that is not here, but for data, of which the streams tell.

    Raises what the trainer raises for what is here and cannot be used; ConfigError where the rows of a stream hang on a
    vision tower that is not here.
    """

    def __init__(self, config: ShowoTraining) -> None:
        self.config = config
        self.missing: list[str] = []
        with torch.device("meta"):
            self.model = Showo(config.model)
            choose_learned(self.model, config)
        self.texts = self._load("text_tokenizer", lambda: TextTokenizer.from_file(config.text_tokenizer, fetch=False))
        self.images = self._load(
            "image_tokenizer", lambda: ImageTokenizer.from_pretrained(_here(config.image_tokenizer))
        )
        if self.texts and self.images:
            check_fit(config, self.images, self.texts)
        self.tower = self._load("vision_tower", self._open_tower) if config.mmu_vit.batch else None
        if config.mmu_vit.batch and not self.tower and config.vision_tower != CLIP_VIT_L_336:
            raise ConfigError(f"vision_tower: {config.vision_tower} is not here, and says how long rows of mmu_vit are")
        if config.init_from:
            self._load("init_from", lambda: _here(config.init_from))
        self.streams = [self._plan(name, stream) for name, stream in config.streams.items()]

    @property
    def rows(self) -> list[Rows]:
        """What the rows of a step hold, stream by stream."""
        return [stream.row.times(stream.rows) for stream in self.streams]

    @property
    def encoder_sizes(self) -> ImageTokenizerConfig:
        """Of the image tokenizer, or of the published one, if it is not here."""
        return self.images.config if self.images else ImageTokenizerConfig()

    def picture_flops(self) -> tuple[int | None, int | None]:
        """Of encoding a picture, and of a picture in the vision tower; None where a network is not known.

        The published image tokenizer stands for one that is not here, if it makes as many codes.
        """
        sizes, side = self.encoder_sizes, self.config.resolution
        if not self.images and (side // sizes.downsampling) ** 2 != self.config.model.num_vq_tokens:
            encoding = None
        else:
            with torch.device("meta"):
                encoder = ImageTokenizer(sizes).encoder
            encoding = count_flops(encoder, torch.empty(1, 3, side, side, device="meta"))
        if self.tower is None:
            return encoding, None
        pixels = torch.empty(1, 3, self.tower.side, self.tower.side, dtype=torch.uint8, device="meta")
        return encoding, count_flops(self.tower.to("meta"), pixels)

    def _load(self, key: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except MissingCheckpointError as error:
            self.missing.append(f"{key}: {error}")
            return None

    def _open_tower(self) -> ClipTower | None:
        _here(self.config.vision_tower)
        return open_tower(self.config, self.texts, torch.device("cpu")) if self.texts else None

    def _plan(self, name: str, stream: Stream) -> PlannedStream:
        data, held_out = _opened(stream.data), _opened(stream.held_out)
        tower = TowerSizes.of(self.tower)
        if self.texts is None or any(source.missing for source in data):
            batch, pictures = full_rows(self.config, name, tower, LOOKED_AT)
            uncoded = sum(source.share for source in data if source.layout != "codes")
            row = _mean_row(self.config, name, batch, [pictures * uncoded * LOOKED_AT], LOOKED_AT)
            return PlannedStream(name, stream.batch, data, held_out, row)
        streams = RowStreams(self.config, self.texts, code_side(self.config), tower)
        opened = streams.open(name, held_out=False)
        if self.images:
            more = (
                []
                if any(source.missing for source in held_out) or not held_out
                else [streams.open(name, held_out=True)]
            )
            check_codes(self.config, [opened, *more], self.images)
        row, count = self._look_at(opened)
        return PlannedStream(name, stream.batch, data, held_out, row, count, first_row(opened, self.texts, self.config))

    def _look_at(self, stream: RowStream) -> tuple[Rows, int]:
        """The mean of the first rows, and how many these are. Raises DataError where too many samples are broken."""
        config, pool = self.config, stream.pool
        drawn = stream.draw(range(min(LOOKED_AT, len(pool))))
        FaultLog([source.name for source in pool.sources], config.broken_share).add(drawn)
        batch, _ = stream.format.batch(
            [each.value for each in drawn], PictureIds(config.model.vocabulary, config.model.num_vq_tokens)
        )
        at_once = [len(source) > config.encode_first for source in pool.sources]
        pictures = [
            sum(picture.dtype == np.uint8 for picture in each.value.pictures)
            for each in drawn
            if stream.name == "mmu_vit" or at_once[each.source]
        ]
        return _mean_row(config, stream.name, batch, pictures, len(drawn)), len(drawn)


def _here(source: str) -> Path:
    """The folder of a checkpoint, or a run's newest. Raises MissingCheckpointError where it had to be fetched first."""
    return resolve_folder(newest_checkpoint(source), fetch=False)


def _opened(configs: Sequence[SourceConfig]) -> list[PlannedSource]:
    total = sum(config.weight for config in configs)
    found = []
    for config in configs:
        samples, missing = None, ""
        try:
            samples = len(open_source(config))
        except MissingDataError as error:
            missing = str(error)
        found.append(PlannedSource(config.describe(), config.layout, config.weight / total, samples, missing))
    return found


def _mean_row(config: ShowoTraining, name: str, batch: Batch, pictures: Sequence[float], rows: int) -> Rows:
    """pictures: of some rows, those that have no codes."""
    which = "seen" if name == "mmu_vit" else "encoded"
    return Rows.of(batch, config.model.vocabulary, **{which: sum(pictures)}).times(1 / rows)
