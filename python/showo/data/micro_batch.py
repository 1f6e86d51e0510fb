"""The rows of a micro-batch, packed, as a worker hands them over: complete but for codes that the device is to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from showo.batch import Batch
from showo.data.faults import Drawn
from showo.data.tally import Tally
from showo.devices import moved_to
from showo.tokens import Vocabulary


class Gaps(NamedTuple):
    """Places of flattened rows that wait for codes. places: int64 [G]. which: of all codes [pictures * N], the code."""

    places: Tensor
    which: Tensor

    def fill(self, rows: Tensor, ids: Tensor) -> Tensor:
        """rows [B, S] with ids [pictures * N] where they belong."""
        places, which = moved_to(rows.device, self.places), moved_to(rows.device, self.which)
        return rows.flatten().index_copy(0, places, ids[which]).view_as(rows)

    @classmethod
    def of(cls, rows: Tensor, first: int) -> Gaps:
        """Where ids from `first` on stand for codes to come: see `showo.data.rows.PictureIds`."""
        flat = rows.flatten()
        places = (flat >= first).nonzero().squeeze(1)
        return cls(places, flat[places] - first)


@dataclass(frozen=True)
class RowBatch:
    """What a worker makes.

    batch: packed. drawn: by part, which sample each of its rows has.
    pixels: uint8 [pictures, 3, H, W] of those that have no codes yet. inputs, targets: where their codes belong.
    """

    batch: Batch
    tally: Tally
    drawn: Mapping[str, Sequence[Drawn[None]]]
    pixels: Tensor | None = None
    inputs: Gaps | None = None
    targets: Gaps | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        tally: Tally,
        drawn: Mapping[str, Sequence[Drawn[None]]],
        pixels: list[np.ndarray],
        vocabulary: Vocabulary,
    ) -> RowBatch:
        if not pixels:
            return cls(batch, tally, drawn)
        gaps = Gaps.of(batch.input_ids, vocabulary.size), Gaps.of(batch.targets, vocabulary.size)
        return cls(batch, tally, drawn, torch.from_numpy(np.stack(pixels)), *gaps)

    @property
    def counts(self) -> Mapping[str, float]:
        """What the targets of each part weigh."""
        return {name: part.weight for name, part in self.batch.parts.items()}

    def completed(
        self,
        encode: Callable[[Tensor], Tensor],
        tower: Callable[[Tensor], Tensor] | None,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> RowBatch:
        """On the device, with codes and features in place of pixels. Nothing here waits for the device.

        encode: pixels uint8 [pictures, 3, H, W] to codes int64 [pictures, N].
        tower: pixels of mmu_vit rows to features.
        """
        batch = self.batch.to(device)
        if tower is not None:
            batch = batch.with_features(tower)
        if self.pixels is not None and self.inputs is not None and self.targets is not None:
            ids = encode(moved_to(device, self.pixels)).flatten() + vocabulary.image_offset
            inputs, targets = self.inputs.fill(batch.input_ids, ids), self.targets.fill(batch.targets, ids)
            batch = replace(batch, input_ids=inputs, targets=targets)
        return RowBatch(batch, self.tally, self.drawn)
