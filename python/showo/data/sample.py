"""What data sources give: samples whose pictures are not decoded yet, and what every source is.

A sample is found by its number in its source. What cannot be used raises SampleError, which names file and key and is
one sample's fault alone, or DataError, which makes the whole source unusable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image

from showo.errors import SampleError
from showo.pictures import open_image


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is not decoded yet (its file's bytes, or its path), or that is encoded already (its codes).

    origin: names the file, and the place in it, in messages.
    codes: int64 [codes], 0-based, row by row from the top left.
    """

    origin: str
    data: bytes | None = None
    path: Path | None = None
    codes: np.ndarray | None = None

    def open(self) -> Image.Image:
        """Upright 8-bit RGB, as `open_image` gives it.

        Raises:
            SampleError: the file is missing, is no readable picture, or has too many pixels.
            TypeError: there are only codes.
        """
        if self.path is not None and not os.path.isfile(self.path):
            raise SampleError(f"{self.origin}: no such file", "missing file")
        source = self.data if self.data is not None else self.path
        if source is None:
            raise TypeError(f"{self.origin}: codes alone; the picture that they stand for is not here")
        return open_image(source, self.origin)


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and its captions, cleaned; each of them fits the picture alone, and a row of training takes one."""

    key: str
    picture: Picture
    captions: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The first caption, where one has to stand for all."""
        return self.captions[0]


@dataclass(frozen=True)
class Document:
    """A text as it is, line breaks included."""

    key: str
    text: str


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Questions with their answers, of which the answers are to be learned, about no, one or several pictures."""

    key: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Frame:
    picture: Picture
    caption: str


@dataclass(frozen=True)
class PictureSequence:
    """Pictures that follow one another, such as the steps of an instruction, each with the caption that leads to it."""

    key: str
    frames: tuple[Frame, ...]


Sample: TypeAlias = CaptionedPicture | Document | Conversation | PictureSequence


class Source(Protocol):
    """A set of samples of one kind, each found by its number from 0 on; a pure function of the number.

    A source can be copied to another process (pickled). `name` stands for it in messages and tables. Indices from
    0 to len - 1, no others. `[i]` raises SampleError where this one sample cannot be used, and DataError where the
    source cannot, such as after a change of its files.
    """

    name: str
    kind: type[Sample]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
