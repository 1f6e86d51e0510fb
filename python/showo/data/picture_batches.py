"""Micro-batches of pictures alone, for the image tokenizer's training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from showo.data.faults import Drawn, Pool
from showo.data.rows import read_pixels, stacked
from showo.data.sample import CaptionedPicture, Sample
from showo.data.tally import Tally
from showo.pieces import pieces


@dataclass(frozen=True)
class PictureBatch:
    """pixels: uint8 [B, 3, H, W]. samples: which they are."""

    pixels: Tensor
    samples: Sequence[Drawn[None]]

    @property
    def drawn(self) -> Mapping[str, Sequence[Drawn[None]]]:
        return {"pictures": self.samples}

    @property
    def counts(self) -> Mapping[str, float]:
        return {"pictures": len(self.pixels)}

    @property
    def tally(self) -> Tally:
        return Tally(images=len(self.pixels))


@dataclass(frozen=True)
class PictureBatches:
    """make(position) for `showo.data.loader.Loader`: micro-batches of `size` pictures, `resolution` pixels wide."""

    pool: Pool
    resolution: int
    size: int

    def __call__(self, position: int) -> PictureBatch:
        return self.of(self.numbers(position))

    def numbers(self, position: int) -> range:
        """Of the pictures of a micro-batch."""
        return range(position * self.size, (position + 1) * self.size)

    def of(self, numbers: range) -> PictureBatch:
        drawn = self.pool.draw(numbers, self._pixels)
        pixels = stacked([each.value for each in drawn], self.resolution)
        return PictureBatch(pixels, [each.facts() for each in drawn])

    def first(self, count: int) -> Iterator[range]:
        """Numbers of the first pictures, as many at once as in a micro-batch; at most all that there are."""
        return pieces(range(min(count, len(self.pool))), self.size)

    def _pixels(self, number: int, sample: Sample) -> np.ndarray:
        assert isinstance(sample, CaptionedPicture)
        return read_pixels(sample.picture, self.resolution)
