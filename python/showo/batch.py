"""Rows of ids with everything that a training step needs to know about them, padded or packed.

A batch is made on the CPU, where looking at its values costs nothing: which places carry a target, and how many, is
found there once, so that no step on a device has to wait for an answer from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from showo.devices import moved_to
from showo_ext import OmniMask

IGNORE = -100


class Part(NamedTuple):
    """The rows of one format in a batch.

    first, end: their places in the flattened [B * S] rows. targets: how many of these carry a target.
    weight: what those targets weigh in all, which is their number unless the batch gives them weights of their own.
    """

    first: int
    end: int
    targets: int
    weight: float

    def joined(self, other: Part) -> Part:
        return Part(self.first, other.end, self.targets + other.targets, self.weight + other.weight)

    def moved(self, offset: int) -> Part:
        return self._replace(first=self.first + offset, end=self.end + offset)


@dataclass(frozen=True)
class FeatureSpans:
    """Features of pictures that stand in rows in place of the embeddings of ids. The model projects and inserts them.

    values: [n, P, clip_width] floating point; or what a vision tower makes them from, such as pixels [n, 3, H, W],
        until `Batch.with_features` has called the tower.
    places: int64 [n * P], the places of the flattened [B * S] rows that they take, picture by picture.
    """

    values: Tensor
    places: Tensor

    @classmethod
    def none(cls, width: int, device: torch.device) -> FeatureSpans:
        """Features of no picture: the model's projector learns nothing from them, with a gradient of zero."""
        return cls(torch.empty(0, 1, width, device=device), torch.empty(0, dtype=torch.int64, device=device))

    def to(self, device: torch.device | str) -> FeatureSpans:
        return FeatureSpans(moved_to(device, self.values), moved_to(device, self.places))


@dataclass(frozen=True)
class Batch:
    """Rows ready for the model.

    input_ids, targets, positions: int64 [B, S]. mask: OmniMask of the same rows.
    labelled: int64 [T], the places of the flattened [B * S] rows whose target is not IGNORE, in ascending order.
    parts: by name, in the order of the rows.
    weights: float32 [T], what each of those targets weighs in its part's mean; None is 1 for all.
    features: of pictures, where rows hold any.
    """

    input_ids: Tensor
    targets: Tensor
    positions: Tensor
    mask: OmniMask
    labelled: Tensor
    parts: dict[str, Part]
    weights: Tensor | None = None
    features: FeatureSpans | None = None

    @classmethod
    def of_rows(
        cls,
        name: str,
        input_ids: Tensor,
        targets: Tensor | None,
        mask: OmniMask,
        *,
        weights: Tensor | None = None,
        features: FeatureSpans | None = None,
    ) -> Batch:
        """Padded rows [B, S] of one part; positions are places. targets: None for none.

        weights: float32 [B, S], read where there is a target. Targets on a device other than the CPU are waited for.
        """
        if targets is None:
            targets, labelled = torch.full_like(input_ids, IGNORE), input_ids.new_empty(0)
        else:
            labelled = (targets.flatten() != IGNORE).nonzero().squeeze(1)
        count = labelled.numel()
        chosen = None if weights is None else weights.flatten()[labelled]
        part = Part(0, input_ids.numel(), count, count if chosen is None else float(chosen.double().sum()))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        return cls(input_ids, targets, positions, mask, labelled, {name: part}, chosen, features)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; the caller does not wait for what a GPU still has to do."""
        return replace(
            self,
            input_ids=moved_to(device, self.input_ids),
            targets=moved_to(device, self.targets),
            positions=moved_to(device, self.positions),
            mask=_moved_mask(device, self.mask),
            labelled=moved_to(device, self.labelled),
            weights=None if self.weights is None else moved_to(device, self.weights),
            features=None if self.features is None else self.features.to(device),
        )

    def with_features(self, tower: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with tower(values) [n, P, clip_width] as the values of its features; itself where it has none."""
        if self.features is None:
            return self
        return replace(self, features=replace(self.features, values=tower(self.features.values)))

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """One batch after the other (equal row length); parts of the same name must follow each other."""
        batches = _not_empty("Batch.cat", batches)
        lengths = sorted({batch.input_ids.shape[1] for batch in batches})
        if len(lengths) > 1:
            raise ValueError(f"Batch.cat: rows must be equally long, got {lengths}; Batch.pack takes any")
        return _joined("Batch.cat", batches, OmniMask.cat([batch.mask for batch in batches]), dim=0)

    @staticmethod
    def pack(batches: Sequence[Batch], pad_id: int) -> Batch:
        """The samples of all batches in one row, each batch `packed`; their rows may differ in length.

        Parts of the same name must follow each other.
        """
        packed = [batch.packed(pad_id) for batch in _not_empty("Batch.pack", batches)]
        mask = OmniMask.block_diagonal([[batch.mask for batch in packed]])
        return _joined("Batch.pack", packed, mask, dim=1)

    def packed(self, pad_id: int) -> Batch:
        """The same samples without padding, in one row: same positions, same looks, same losses.

        Padding's ids, targets and intervals are dropped; intervals, targets and features move with the places that
        stay.
        """
        keep = self.input_ids != pad_id
        flat = keep.flatten()
        # New place of every old one, and of every old interval end (one more than there are columns).
        before = torch.cat((flat.new_zeros(1, dtype=torch.int64), flat.cumsum(0)))
        batch, length = keep.shape
        first = torch.arange(batch, device=keep.device)[:, None, None, None] * length
        intervals = before[first + self.mask.intervals.long()].to(torch.int32)
        total = int(before[-1])
        return Batch(
            self.input_ids[keep][None],
            self.targets[keep][None],
            self.positions[keep][None],
            OmniMask(intervals[keep][None].contiguous(), total),
            before[self.labelled],
            {
                n: part._replace(first=int(before[part.first]), end=int(before[part.end]))
                for n, part in self.parts.items()
            },
            self.weights,
            None if self.features is None else replace(self.features, places=before[self.features.places]),
        )


def _moved_mask(device: torch.device | str, mask: OmniMask) -> OmniMask:
    intervals = moved_to(device, mask.intervals)
    return mask if intervals is mask.intervals else OmniMask(intervals, mask.kv_length)


def _not_empty(caller: str, batches: Sequence[Batch]) -> list[Batch]:
    kept = [batch for batch in batches if batch.input_ids.shape[0]]
    if not kept:
        raise ValueError(f"{caller}: all batches are empty")
    return kept


def _joined(caller: str, batches: Sequence[Batch], mask: OmniMask, dim: int) -> Batch:
    """Batches whose flattened rows follow one another."""
    parts: dict[str, Part] = {}
    labelled: list[Tensor] = []
    places: list[Tensor] = []
    offset = 0
    for batch in batches:
        for name, part in batch.parts.items():
            part = part.moved(offset)
            if name in parts and parts[name].end != part.first:
                raise ValueError(f"{caller}: the rows of part {name!r} are not together")
            parts[name] = parts[name].joined(part) if name in parts else part
        labelled.append(batch.labelled + offset)
        if batch.features is not None:
            places.append(batch.features.places + offset)
        offset += batch.input_ids.numel()
    values = [batch.features.values for batch in batches if batch.features is not None]
    if len({value.shape[1:] for value in values}) > 1:
        raise ValueError(f"{caller}: features must have one shape, got {[list(value.shape) for value in values]}")
    weights = None
    if any(batch.weights is not None for batch in batches):
        ones = [torch.ones_like(batch.labelled, dtype=torch.float32) for batch in batches]
        weights = torch.cat([one if b.weights is None else b.weights for b, one in zip(batches, ones)])
    return Batch(
        torch.cat([batch.input_ids for batch in batches], dim),
        torch.cat([batch.targets for batch in batches], dim),
        torch.cat([batch.positions for batch in batches], dim),
        mask,
        torch.cat(labelled),
        parts,
        weights,
        FeatureSpans(torch.cat(values), torch.cat(places)) if values else None,
    )
