"""Rows of videos: a sequence of pictures is a video, its captions, one after the other, are what happens in it.

Of these formats only the ids of their marks are published; what a row takes from a sequence is chosen here. All frames
of a video hide the same share of their codes, since it is drawn as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from showo.batch import Batch
from showo.data.corruption import Corruption
from showo.data.rows import Hidden, Making, PictureIds, RowParts
from showo.data.sample import Frame, PictureSequence, Sample
from showo.errors import SampleError

CAPTIONS_BETWEEN = "; "


def described(frames: Sequence[Frame]) -> str:
    """What happens in a video."""
    return CAPTIONS_BETWEEN.join(frame.caption for frame in frames)


def corruptions(making: Making, frames: int, number: int, draw: Random) -> tuple[Corruption, ...]:
    """Of the frames of one video, all with the share that is drawn for the first."""
    first = making.draw_corruption(number, draw)
    return (first, *(making.draw_corruption(number, draw, ratio=first.ratio) for _ in range(frames - 1)))


@dataclass(frozen=True)
class TextToVideo:
    """t2v: all captions of a sequence as one text, and its pictures as a video with a part of the codes hidden.

    dropout: share of texts that are empty.
    """

    making: Making
    dropout: float
    kinds: ClassVar[tuple[type[Sample], ...]] = (PictureSequence,)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        assert isinstance(sample, PictureSequence)
        making, frames = self.making, sample.frames
        making.check_length(sample.key, len(frames), self.text_room + 2)
        text = [] if draw.random() < self.dropout else making.tokenizer.encode(described(frames))
        pictures = tuple(making.pictures(frame.picture) for frame in frames)
        return RowParts((text,), pictures, corruptions(making, len(frames), number, draw))

    @property
    def text_room(self) -> int:
        return self.making.prompting.max_text_len + 1

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        """Of the text, also where the row drops it."""
        assert isinstance(sample, PictureSequence)
        making = self.making
        return [making.prompting.t2i_places(making.tokenizer.encode(described(sample.frames)))]

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        found, hidden = self.making.corrupt_by_row(rows, pictures)
        texts = [row.texts[0] for row in rows]
        batch = self.making.prompting.t2v(texts, found.inputs, found.targets, frame_weights=found.weights)
        return batch, hidden


@dataclass(frozen=True)
class VideoToVideo:
    """v2v: a sequence is cut in two. What comes first is the video that is given, whole and without a text; the
    captions of the rest say what is to become of it, and its pictures are the video that is to be drawn.
    """

    making: Making
    kinds: ClassVar[tuple[type[Sample], ...]] = (PictureSequence,)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        assert isinstance(sample, PictureSequence)
        making, frames = self.making, sample.frames
        making.check_length(sample.key, len(frames), 1 + 2 + self.text_room + 2)
        given = self._given(sample, draw)
        text = making.tokenizer.encode(described(frames[given:]))
        pictures = tuple(making.pictures(frame.picture) for frame in frames)
        return RowParts((text,), pictures, corruptions(making, len(frames) - given, number, draw))

    @property
    def text_room(self) -> int:
        return self.making.prompting.max_text_len

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        assert isinstance(sample, PictureSequence)
        making = self.making
        text = making.tokenizer.encode(described(sample.frames[self._given(sample, draw) :]))
        return [making.prompting.t2i_places(text) - 1]  # the task token stands before the given video

    def _given(self, sample: PictureSequence, draw: Random) -> int:
        """How many frames are given. Raises SampleError where there are not two."""
        if len(sample.frames) == 1:
            raise SampleError(f"{sample.key}: one picture, and rows of v2v need two", "one picture")
        return draw.randrange(1, len(sample.frames))

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        given = [pictures.of(row.given) for row in rows]
        found, hidden = self.making.corrupt_by_row(rows, pictures)
        texts = [row.texts[0] for row in rows]
        batch = self.making.prompting.v2v(given, texts, found.inputs, found.targets, frame_weights=found.weights)
        return batch, hidden
