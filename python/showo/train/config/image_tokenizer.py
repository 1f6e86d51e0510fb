"""The configuration of `showo train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError
from showo.intervals import COUNT, NOT_NEGATIVE, SHARE, within
from showo.model.image_tokenizer import ImageTokenizerConfig
from showo.train.config.loop import LoopConfig
from showo.train.config.streams import check_sources, refuse_codes


@dataclass
class TokenizerTraining(LoopConfig):
    """`showo train-tokenizer`. batch: pictures of a whole step. resolution: their sides, in pixels."""

    batch: int = within(COUNT, 32)
    resolution: int = within(COUNT, 64)
    data: list[SourceConfig] = field(default_factory=list)
    held_out: list[SourceConfig] = field(default_factory=list)
    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    init_from: str = ""  # a checkpoint folder, or a run, whose weights start this one
    train_encoder: bool = True  # False: codes stay what they are, only the decoder learns to draw them better
    augment: float = within(SHARE, 0.75)  # share of pictures that are turned, scaled, moved, mirrored
    recolour: float = within(SHARE, 0.0)  # share of pictures that get other colours
    l1_weight: float = within(NOT_NEGATIVE, 0.2)  # beside 1.0 x squared error
    gradient_weight: float = within(NOT_NEGATIVE, 0.2)  # L1 of pixel differences: sharp edges without a critic
    quantizer_weight: float = within(NOT_NEGATIVE, 0.1)  # of the commitment term, as officially
    entropy_weight: float = within(NOT_NEGATIVE, 0.015)  # official: 0.1 x the mean over bits, half of this
    entropy_of_flat_patches: bool = True  # False: patches of a single colour have no part in the entropy term
    locality_weight: float = within(NOT_NEGATIVE, 0.0)  # a patch has the same code whatever stands far from it
    colour_weight: float = within(NOT_NEGATIVE, 0.0)  # all but the first `colour_bits` bits are blind to colour
    colour_bits: int = within(COUNT, 4)

    def check(self) -> None:
        super().check()
        self.check_batch("batch", self.batch)
        check_sources("", self.data, self.held_out)
        refuse_codes("", self.data, self.held_out)
        if self.colour_weight and self.colour_bits >= self.model.bits:
            raise ConfigError(f"colour_bits must be fewer than model.bits {self.model.bits}, got {self.colour_bits}")
        if self.locality_weight and self.resolution < 4 * self.model.downsampling:
            raise ConfigError(
                f"locality_weight needs pictures of 4 patches a side, {4 * self.model.downsampling} pixels; resolution "
                f"is {self.resolution}"
            )
        self.model.side(self.resolution)
