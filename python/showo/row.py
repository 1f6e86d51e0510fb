"""One row of ids with its targets, put together from left to right, and rows padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from showo.batch import IGNORE
from showo.tokens import Vocabulary

Images = Tensor | Sequence[Tensor]  # the images of every row, [B, M, N]; as a sequence, rows may differ in M


class Image(NamedTuple):
    """Ids of codes and mask tokens; the targets of these places and their weights, or None where nothing is learned."""

    ids: list[int]
    targets: list[int] | None
    weights: list[float] | None

    @staticmethod
    def joined(images: Sequence[Image]) -> Image:
        """Images one after the other, such as the frames of a video."""
        first = images[0]
        return Image(
            [i for image in images for i in image.ids],
            None if first.targets is None else [t for image in images for t in image.targets or ()],
            None if first.weights is None else [w for image in images for w in image.weights or ()],
        )


class Row:
    """ids, and of every place its target and that target's weight."""

    def __init__(self, ids: Sequence[int]) -> None:
        """Begins with ids that are given, not learned."""
        self.ids = list(ids)
        self.targets = [IGNORE] * len(self.ids)
        self.weights = [1.0] * len(self.ids)

    def add_text(self, ids: Sequence[int], learned: Sequence[bool]) -> None:
        """A learned id is the target of the place before it, whatever is there; the first place of a row has none."""
        for id_, wanted in zip(ids, learned, strict=True):
            if wanted and self.ids:
                self.targets[-1] = id_
            self.ids.append(id_)
            self.targets.append(IGNORE)
            self.weights.append(1.0)

    def add_image(self, start: int, image: Image, end: int) -> None:
        """An image between its marks, which are targets too where the image has any (as officially)."""
        self.ids += [start, *image.ids, end]
        if image.targets is None:
            self.targets += [IGNORE] * (len(image.ids) + 2)
        else:
            self.targets += [start, *image.targets, end]
        self.weights += [1.0, *(image.weights or [1.0] * len(image.ids)), 1.0]


def read_images(
    name: str,
    vocabulary: Vocabulary,
    rows: int,
    ids: Images,
    targets: Images | None = None,
    weights: Images | None = None,
) -> list[list[Image]]:
    """The images of every row, from int64 ids, int64 targets and float32 weights of one shape.

    Raises TypeError, ValueError for other types, shapes and ids that are no codes; `name` begins the message.
    """
    if len(ids) != rows:
        raise ValueError(f"{name}: {rows} texts need as many rows of image ids, got {len(ids)}")
    for what, given in (("targets", targets), ("weights", weights)):
        if given is not None and [t.shape for t in given] != [t.shape for t in ids]:
            shapes = [[list(t.shape) for t in tensors] for tensors in (ids, given)]
            raise ValueError(f"{name}: image {what} must have the shapes of the ids, {shapes[0]}, got {shapes[1]}")
    return [
        _read_row(
            f"{name}: row {b}",
            vocabulary,
            ids[b],
            None if targets is None else targets[b],
            None if weights is None else weights[b],
        )
        for b in range(rows)
    ]


def _read_row(
    name: str, vocabulary: Vocabulary, ids: Tensor, targets: Tensor | None, weights: Tensor | None
) -> list[Image]:
    if ids.dtype != torch.int64 or ids.dim() != 2:
        raise TypeError(f"{name}: image ids must be int64 [images, N], got {ids.dtype} {list(ids.shape)}")
    low, first = int(ids.min()) if ids.numel() else vocabulary.image_offset, vocabulary.image_offset
    if low < first:
        raise ValueError(
            f"{name}: image ids must be at least {first} (code + image_offset, or the mask token), got {low}"
        )
    learned: Sequence[list[int] | None] = [None] * len(ids) if targets is None else targets.tolist()
    weighed: Sequence[list[float] | None] = [None] * len(ids) if weights is None else weights.tolist()
    return [Image(*each) for each in zip(ids.tolist(), learned, weighed, strict=True)]


def padded(rows: Sequence[Row], pad_id: int, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """ids, targets int64 and weights float32, each [B, length], padded on the right; None takes the longest row."""
    if length is None:
        length = max((len(row.ids) for row in rows), default=0)

    def filled(values: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
        full = [[*some, *[value] * (length - len(some))] for some in values]
        return torch.tensor(full, dtype=dtype).reshape(len(rows), length)

    return (
        filled([row.ids for row in rows], pad_id, torch.int64),
        filled([row.targets for row in rows], IGNORE, torch.int64),
        filled([row.weights for row in rows], 1.0, torch.float32),
    )
