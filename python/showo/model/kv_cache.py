"""Keys and values of what a model has read, which what comes later looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo.config import ShowoConfig


class KVCache:
    """Keys and values of every layer, [B, H, slots, D], written at given slots.

    A fixed buffer: nothing is reallocated while a picture or a text is generated. What a query may look at is the
    mask's business, slots that no interval covers are never read.
    """

    def __init__(
        self,
        config: ShowoConfig,
        batch: int,
        slots: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, config.num_heads, slots, config.head_dim)
        self.batch = batch
        self.slots = slots
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def row_slots(self, slots: int | Tensor, length: int) -> Tensor:
        """The slot of every row, int64 [S] or [B, S]: for `slots` as of `write`."""
        if not isinstance(slots, int):
            return slots
        self._check(slots, length)
        return torch.arange(slots, slots + length, device=self.keys[0].device)

    def _check(self, start: int, length: int) -> None:
        if start < 0 or start + length > self.slots:
            raise ValueError(f"KVCache: rows {start}..{start + length} do not fit {self.slots} slots")

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: int | Tensor) -> None:
        """Put keys, values [B, H, S, D] at slots: from one start for all samples, or those of each, int64 [B, S]."""
        for into, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if isinstance(slots, int):
                self._check(slots, new.shape[2])
                into[:, :, slots : slots + new.shape[2]] = new
            else:  # under autocast projections have another dtype
                into.scatter_(2, slots[:, None, :, None].expand_as(new), new.to(into.dtype))

    def first(self, count: int) -> KVCache:
        """That of the first samples: a view."""
        return self._of(count, self.slots, [x[:count] for x in self.keys], [x[:count] for x in self.values])

    def taken(self, samples: Tensor, slots: int) -> KVCache:
        """A copy with these samples (int64, on the cache's device), and so many slots, of which the new ones hold 0."""
        return KVCache.joined([(self, samples)], slots)

    @staticmethod
    def joined(parts: Sequence[tuple[KVCache, Tensor]], slots: int) -> KVCache:
        """`taken` of several caches of one model, one after the other."""
        count = sum(len(samples) for _, samples in parts)

        def copied(buffers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
            x, _ = buffers[0]
            out, first = x.new_zeros(count, x.shape[1], slots, x.shape[3]), 0
            for x, samples in buffers:
                kept = min(slots, x.shape[2])
                out[first : first + len(samples), :, :kept] = x[samples, :, :kept]
                first += len(samples)
            return out

        layers = range(len(parts[0][0].keys))
        keys = [copied([(cache.keys[layer], samples) for cache, samples in parts]) for layer in layers]
        values = [copied([(cache.values[layer], samples) for cache, samples in parts]) for layer in layers]
        return KVCache._of(count, slots, keys, values)

    def overwrite(self, other: KVCache, first: int, end: int) -> None:
        """Puts slots first..end of another cache into this one, of as many samples as both have."""
        count = min(self.batch, other.batch)
        for into, x in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            into[:count, :, first:end] = x[:count, :, first:end]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.keys, *self.values))

    @classmethod
    def _of(cls, batch: int, slots: int, keys: list[Tensor], values: list[Tensor]) -> KVCache:
        cache = cls.__new__(cls)
        cache.batch, cache.slots, cache.keys, cache.values = batch, slots, keys, values
        return cache
