"""Samples become rows: one class a format, which says what a row of it takes from a sample and from chance.

A row is made in two parts. `parts` turns a sample into texts as ids and pictures as codes or pixels; what is wrong with
a sample shows here. `batch` puts the rows of a micro-batch together. All that is drawn comes from the generator that
belongs to the row, so a row is the same in whatever micro-batch, process or order it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from showo.batch import Batch
from showo.data.corruption import Corrupted, Corruption, ObjectiveConfig, corrupt, draw_corruption
from showo.data.sample import CaptionedPicture, Conversation, Document, Frame, Picture, PictureSequence, Sample
from showo.dialogue import SYSTEM_PROMPT, Dialogue, encode_dialogue
from showo.errors import SampleError
from showo.model.clip import clip_pixels
from showo.pictures import fit, to_pixels
from showo.prompting import Prompting, TextIds
from showo.tokens import TextTokenizer, Vocabulary


@dataclass(frozen=True, eq=False)
class RowParts:
    """What a row takes from its sample.

    texts: ids without marks, in the order of the row. answer: of a row of understanding, what follows the pictures.
    pictures: of each the codes, int64 [N], or the pixels, uint8 [3, side, side].
    corruptions: what is hidden of the pictures that are to be drawn, which are the last ones.
    """

    texts: tuple[TextIds, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()
    corruptions: tuple[Corruption, ...] = ()
    answer: TextIds | Dialogue = ()

    @property
    def given(self) -> tuple[np.ndarray, ...]:
        """The pictures that are not to be drawn."""
        return self.pictures[: len(self.pictures) - len(self.corruptions)]

    @property
    def to_draw(self) -> tuple[np.ndarray, ...]:
        return self.pictures[len(self.given) :]


@dataclass(frozen=True)
class Hidden:
    """Codes of pictures that are learned to be drawn, and how many of them the model does not see."""

    codes: int = 0
    hidden: int = 0


class Format(Protocol):
    """How rows of one format are made. kinds: of samples that they can be made of."""

    kinds: ClassVar[tuple[type[Sample], ...]]

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        """number: of the row. Raises SampleError where the sample cannot be used."""
        ...

    @property
    def text_room(self) -> int:
        """Places that a row has for a text, marks included; a longer one is cut."""
        ...

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        """Places that each text would take that `parts` takes with the same `draw`, were none cut. Reads no picture."""
        ...

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        """Padded rows."""
        ...


class CorruptedRows(NamedTuple):
    """As `Corrupted`, of every row [pictures, N]."""

    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    weights: Sequence[Tensor] | None

    @classmethod
    def of(cls, found: Corrupted, counts: list[int]) -> CorruptedRows:
        """Of rows with so many pictures each, which lie one after the other."""
        weights = None if found.weights is None else found.weights.split(counts)
        return cls(found.inputs.split(counts), found.targets.split(counts), weights)


class PictureIds:
    """Ids of pictures' codes within one micro-batch, also of pictures that are to be encoded later.

    Code c of a picture that is not encoded yet has the id `vocabulary.size + p * N + c`, where p counts those pictures:
    it stands for what the image tokenizer will say. `pixels` holds them in that order.
    """

    def __init__(self, vocabulary: Vocabulary, codes: int) -> None:
        self.vocabulary, self.codes = vocabulary, codes
        self.pixels: list[np.ndarray] = []

    def of(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """int64 [pictures, N]."""
        ids = [self._of(picture) for picture in pictures]
        return torch.from_numpy(np.stack(ids)) if ids else torch.empty(0, self.codes, dtype=torch.int64)

    def _of(self, picture: np.ndarray) -> np.ndarray:
        if picture.dtype != np.uint8:
            return picture + self.vocabulary.image_offset
        first = self.vocabulary.size + len(self.pixels) * self.codes
        self.pixels.append(picture)
        return np.arange(first, first + self.codes)


def pictures_of(sample: Sample) -> tuple[Picture, ...]:
    """All pictures of a sample of any kind, in order."""
    if isinstance(sample, CaptionedPicture):
        return (sample.picture,)
    if isinstance(sample, Conversation):
        return sample.pictures
    return tuple(frame.picture for frame in sample.frames) if isinstance(sample, PictureSequence) else ()


def read_pixels(picture: Picture, resolution: int) -> np.ndarray:
    """uint8 [3, resolution, resolution], resized and cropped. Raises SampleError where it cannot be read."""
    return to_pixels(fit(picture.open(), (resolution, resolution))).contiguous().numpy()


def stacked(pictures: Sequence[np.ndarray], resolution: int) -> Tensor:
    """uint8 [pictures, 3, resolution, resolution] of pixels of one picture each; there may be none."""
    none = np.empty((0, 3, resolution, resolution), np.uint8)
    return torch.from_numpy(np.stack(pictures) if pictures else none)


@dataclass(frozen=True)
class PictureReader:
    """Pictures as rows take them: codes as they are, others resized and cropped to `resolution` x `resolution`.

    side: of the square grid of codes. codebook_size: how many different ones there are.
    """

    resolution: int
    side: int
    codebook_size: int

    def __call__(self, picture: Picture) -> np.ndarray:
        """Codes int64 [N] or pixels uint8 [3, side, side]. Raises SampleError where there are not these."""
        if picture.codes is None:
            return read_pixels(picture, self.resolution)
        codes = picture.codes.astype(np.int64, copy=False)
        if codes.shape != (self.side**2,):
            raise SampleError(f"{picture.origin}: {len(codes)} codes, expected {self.side**2}", "number of codes")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise SampleError(f"{picture.origin}: codes must be 0 to {self.codebook_size - 1}", "codes out of range")
        return codes


@dataclass(frozen=True)
class Making:
    """What all formats need. held_out: pictures take the objective's `eval_mask_ratios` in turn, if there are any."""

    prompting: Prompting
    tokenizer: TextTokenizer
    pictures: PictureReader
    objective: ObjectiveConfig
    held_out: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        return self.pictures.side, self.pictures.side

    def draw_corruption(self, number: int, draw: Random, *, ratio: float | None = None) -> Corruption:
        """Of a picture of row `number`. ratio: the share, where it is not to be drawn."""
        if ratio is None and self.held_out:
            ratio = self.objective.held_out_ratio(number)
        return draw_corruption(self.objective, self.grid, draw, ratio=ratio)

    def corrupt(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Corrupted, Hidden]:
        """Of all pictures of all rows that are to be drawn, one after the other."""
        ids = pictures.of([picture for row in rows for picture in row.to_draw])
        corruptions = [corruption for row in rows for corruption in row.corruptions]
        found = corrupt(ids, corruptions, self.objective, self.prompting.vocabulary, self.grid)
        return found, Hidden(found.hidden.numel(), int(found.hidden.sum()))

    def corrupt_by_row(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[CorruptedRows, Hidden]:
        """Of rows that may have several pictures."""
        found, hidden = self.corrupt(rows, pictures)
        return CorruptedRows.of(found, [len(row.to_draw) for row in rows]), hidden

    def check_length(self, key: str, pictures: int, beside: int) -> None:
        """Raises SampleError where a row of so many pictures may take more positions than the model has.

        beside: places that the row has at most beside the pictures' codes.
        """
        places, limit = pictures * self.pictures.side**2 + beside, self.prompting.max_positions
        if limit is not None and places > limit:
            raise SampleError(f"{key}: {pictures} pictures may take {places} positions, more than {limit}", "too long")


@dataclass(frozen=True)
class TextToImage:
    """t2i: a caption, and its picture with a part of the codes hidden. dropout: share of captions that are empty."""

    making: Making
    dropout: float
    kinds: ClassVar[tuple[type[Sample], ...]] = (CaptionedPicture,)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        assert isinstance(sample, CaptionedPicture)
        caption = self._caption(sample, draw)
        text = [] if draw.random() < self.dropout else caption
        return RowParts((text,), (self.making.pictures(sample.picture),), (self.making.draw_corruption(number, draw),))

    @property
    def text_room(self) -> int:
        return self.making.prompting.max_text_len + 1

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        """Of the caption, also where the row drops it."""
        assert isinstance(sample, CaptionedPicture)
        return [self.making.prompting.t2i_places(self._caption(sample, draw))]

    def _caption(self, sample: CaptionedPicture, draw: Random) -> list[int]:
        return self.making.tokenizer.encode(draw.choice(sample.captions))

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        found, hidden = self.making.corrupt(rows, pictures)
        texts = [row.texts[0] for row in rows]
        batch = self.making.prompting.t2i(texts, found.inputs, found.targets, image_weights=found.weights)
        return batch, hidden


@dataclass(frozen=True)
class Understanding:
    """mmu: pictures, then a caption, or questions with their answers, of which the answers are learned.

    questions: a share `question_share` of the captions answers one of these.
    """

    making: Making
    questions: tuple[str, ...] = ()
    question_share: float = 0.0
    template: ClassVar[str] = "showo"  # of `showo.dialogue`
    kinds: ClassVar[tuple[type[Sample], ...]] = (CaptionedPicture, Conversation)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        pictures = pictures_of(sample)
        self.check_pictures(sample.key, len(pictures))
        answer = self._answer(sample, draw)
        return RowParts(pictures=tuple(self.read(picture) for picture in pictures), answer=answer)

    @property
    def text_room(self) -> int:
        return self.making.prompting.mmu_text_len

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        return [self.making.prompting.answer_places(self._answer(sample, draw), sot=True)]

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        ids = [pictures.of(row.pictures) for row in rows]
        return self.making.prompting.mmu(ids, [row.answer for row in rows]), Hidden()

    def check_pictures(self, key: str, count: int) -> None:
        self.making.check_length(key, count, 1 + 2 * count + self.making.prompting.mmu_text_len)

    def read(self, picture: Picture) -> np.ndarray:
        return self.making.pictures(picture)

    def _answer(self, sample: Sample, draw: Random) -> TextIds | Dialogue:
        tokenizer = self.making.tokenizer
        if isinstance(sample, Conversation):
            turns = [(turn.question, turn.answer) for turn in sample.turns]
            return encode_dialogue(turns, tokenizer, self.template)
        assert isinstance(sample, CaptionedPicture)
        caption = draw.choice(sample.captions)
        if draw.random() < self.question_share:
            return encode_dialogue([(draw.choice(self.questions), caption)], tokenizer, self.template)
        return tokenizer.encode(caption)


@dataclass(frozen=True)
class FeatureUnderstanding(Understanding):
    """mmu_vit: as mmu, but a picture's features stand where its codes would. They are made later, of its pixels.

    side: of the vision tower's pictures. image_tokens: its features of each.
    """

    side: int = 336
    image_tokens: int = 576
    template: ClassVar[str] = "phi1.5"

    @property
    def text_room(self) -> int:
        return self.making.prompting.mmu_vit_text_len

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        return [self.making.prompting.answer_places(self._answer(sample, draw), sot=False)]

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        pixels = [stacked(row.pictures, self.side) for row in rows]
        texts, system = [row.answer for row in rows], self.making.tokenizer.encode(SYSTEM_PROMPT)
        return self.making.prompting.mmu_vit(texts, system, pixels, image_tokens=self.image_tokens), Hidden()

    def check_pictures(self, key: str, count: int) -> None:
        if count > 1:
            raise SampleError(f"{key}: {count} pictures; a row of mmu_vit has at most one", "several pictures")

    def read(self, picture: Picture) -> np.ndarray:
        return clip_pixels(picture.open(), self.side).contiguous().numpy()


@dataclass(frozen=True)
class PicturesAndTexts:
    """lvg: captions and pictures in turn; of every picture a part of the codes is hidden."""

    making: Making
    kinds: ClassVar[tuple[type[Sample], ...]] = (PictureSequence,)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        assert isinstance(sample, PictureSequence)
        making, count = self.making, len(sample.frames)
        making.check_length(sample.key, count, 1 + count * (making.prompting.max_text_len + 2))
        frames, whole = self._frames(sample, draw)
        nothing = (Corruption(0.0, draw.getrandbits(63)) for _ in frames[:whole])
        return RowParts(
            tuple(making.tokenizer.encode(frame.caption) for frame in frames),
            tuple(making.pictures(frame.picture) for frame in frames),
            (*nothing, *(making.draw_corruption(number, draw) for _ in frames[whole:])),
        )

    @property
    def text_room(self) -> int:
        return self.making.prompting.max_text_len + 1

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        assert isinstance(sample, PictureSequence)
        making = self.making
        frames, _ = self._frames(sample, draw)
        return [making.prompting.t2i_places(making.tokenizer.encode(frame.caption)) for frame in frames]

    def _frames(self, sample: PictureSequence, draw: Random) -> tuple[tuple[Frame, ...], int]:
        """The frames of a row, and how many of them, the first ones, are hardly hidden."""
        if not self.making.objective.keep_earlier or len(sample.frames) == 1:
            return sample.frames, 0
        whole = draw.randrange(1, len(sample.frames))
        return sample.frames[: whole + 1], whole

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        found, hidden = self.making.corrupt_by_row(rows, pictures)
        texts = [row.texts for row in rows]
        batch = self.making.prompting.lvg(texts, found.inputs, found.targets, image_weights=found.weights)
        return batch, hidden


@dataclass(frozen=True)
class Texts:
    """lm: a window of a document that fills a row of `length` places; of a longer document, any of its windows."""

    making: Making
    length: int
    kinds: ClassVar[tuple[type[Sample], ...]] = (Document,)

    def parts(self, sample: Sample, number: int, draw: Random) -> RowParts:
        assert isinstance(sample, Document)
        text = self.making.tokenizer.encode(sample.text)
        window = self.length - 2  # begin and end marks
        start = window * draw.randrange(max(1, math.ceil(len(text) / window)))
        return RowParts((text[start : start + window],))

    @property
    def text_room(self) -> int:
        """Of a longer document a row takes a window."""
        return self.length

    def text_places(self, sample: Sample, draw: Random) -> list[int]:
        assert isinstance(sample, Document)
        return [len(self.making.tokenizer.encode(sample.text)) + 2]

    def batch(self, rows: Sequence[RowParts], pictures: PictureIds) -> tuple[Batch, Hidden]:
        return self.making.prompting.lm([row.texts[0] for row in rows], self.length), Hidden()
