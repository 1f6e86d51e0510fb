"""A small source whose pictures go through the image tokenizer once, and stay in memory as codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from showo.data.loader import Loader
from showo.data.rows import pictures_of, read_pixels, stacked
from showo.data.sample import CaptionedPicture, Conversation, Picture, PictureSequence, Sample, Source
from showo.errors import SampleError

_AT_ONCE = 64  # samples that are read and encoded together


def with_codes(sample: Sample, codes: np.ndarray) -> Sample:
    """The sample with codes [pictures, N] in place of its pictures."""
    pictures = [Picture(p.origin, codes=c) for p, c in zip(pictures_of(sample), codes, strict=True)]
    if isinstance(sample, CaptionedPicture):
        return replace(sample, picture=pictures[0])
    if isinstance(sample, Conversation):
        return replace(sample, pictures=tuple(pictures))
    assert isinstance(sample, PictureSequence)
    return replace(sample, frames=tuple(replace(f, picture=p) for f, p in zip(sample.frames, pictures)))


class EncodedSource:
    """Samples of `source` with codes in place of pictures.

    codes: int32 [pictures of all samples, N]. first: int64 [samples + 1], of each sample the first of its pictures.
    A sample that could not be read has none there, and is given as it is: whoever reads it will find the fault.
    """

    def __init__(self, source: Source, codes: np.ndarray, first: np.ndarray) -> None:
        self.source, self.codes, self.first = source, codes, first
        self.name, self.kind = source.name, source.kind

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        start, end = self.first[index : index + 2]
        return with_codes(sample, self.codes[start:end]) if end > start else sample


@dataclass(frozen=True)
class _Reader:
    """Pixels of the pictures of some samples: uint8 [pictures, 3, H, W], and how many each sample has."""

    source: Source
    resolution: int

    def __call__(self, number: int) -> tuple[Tensor, list[int]]:
        start = number * _AT_ONCE
        read = [self._read(index) for index in range(start, min(start + _AT_ONCE, len(self.source)))]
        pixels = [picture for sample in read for picture in sample]
        return stacked(pixels, self.resolution), [len(sample) for sample in read]

    def _read(self, index: int) -> list[np.ndarray]:
        try:
            return [read_pixels(picture, self.resolution) for picture in pictures_of(self.source[index])]
        except SampleError:
            return []


def encode_source(
    source: Source, resolution: int, encode: Callable[[Tensor], Tensor], workers: int, console: Console
) -> EncodedSource:
    """Encodes all pictures of a source, `workers` processes reading them.

    encode: pixels uint8 [pictures, 3, H, W] to codes int64 [pictures, N].
    """
    chunks = -(-len(source) // _AT_ONCE)
    loader = Loader(_Reader(source, resolution), workers=workers, prefetch=2)
    codes: list[np.ndarray] = []
    counts = [0]
    for pixels, found in track(loader.between(0, chunks), f"encoding {source.name}", chunks, console=console):
        counts += found
        if len(pixels):
            codes.append(encode(pixels).cpu().numpy().astype(np.int32))
    joined = np.concatenate(codes) if codes else np.empty((0, 0), np.int32)
    return EncodedSource(source, joined, np.cumsum(counts))
