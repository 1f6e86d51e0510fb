"""The configuration of `showo train-vision-tower`."""

from __future__ import annotations

from dataclasses import dataclass, field

from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError
from showo.intervals import COUNT, within
from showo.model.contrastive import TowersConfig
from showo.train.config.loop import LoopConfig
from showo.train.config.streams import check_sources, refuse_codes


@dataclass
class VisionTowerTraining(LoopConfig):
    """`showo train-vision-tower`. resolution: sides of the pictures, in pixels.

    `batch`: pictures of a whole step. Each is compared with the captions of its micro-batch.
    """

    batch: int = within(COUNT, 128)
    resolution: int = within(COUNT, 64)
    text_tokenizer: str = "bundled:tiny/showo"
    data: list[SourceConfig] = field(default_factory=list)
    held_out: list[SourceConfig] = field(default_factory=list)
    model: TowersConfig = field(default_factory=TowersConfig)

    def check(self) -> None:
        super().check()
        self.check_batch("batch", self.batch)
        if self.batch < 2 * self.accumulate:
            raise ConfigError(f"batch must be at least 2 for each of accumulate {self.accumulate}, got {self.batch}")
        check_sources("", self.data, self.held_out)
        refuse_codes("", self.data, self.held_out)
        self.model.check_side(self.resolution)
