"""The one mask object of the project: which columns (keys) each row (query) may look at.

`OmniMask` holds, for every query row, up to eight half-open column intervals instead of a dense matrix. All of
Show-o's sequence formats need one interval per row, the CLIP-ViT variant two, `lvg_v2` one per run of text. Every
attention backend (C++ on the CPU, CUDA, the plain-torch reference) reads the same intervals; a row without columns
gives zeros and lse = -inf.

    mask = OmniMask.t2i(input_ids, pad_id=50295, soi_id=50296, eoi_id=50297)     # [B, S] token ids, left padded
    mask = OmniMask.cat([t2i_mask, lm_mask, mmu_mask])                           # a mixed batch
    mask = OmniMask.packed(ids, samples, formats, pad_id=..., soi_id=..., eoi_id=...)   # many samples in one row
    last = mask.rows(-1, None)                                                   # one query row against the whole cache

The rules of the formats live in `showo_ext.mask_formats`, those of windows and caches in `showo_ext.mask_windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from showo_ext import mask_formats, mask_windows
from showo_ext._checks import check_int, check_shape, check_tensor
from showo_ext._inference import normal_tensors
from showo_ext._kept import Kept

MAX_INTERVALS = mask_formats.MAX_INTERVALS


@dataclass(frozen=True, eq=False, repr=False)
class OmniMask:
    """Immutable attention mask: column intervals per query row.

    Fields:
        intervals: int32 [B, S_q, K, 2], half-open [start, stop) column ranges, 1 <= K <= 8; start == stop is empty.
            Ranges of a row may come in any order and may overlap: a column is allowed when any range holds it.
        kv_length: number of columns S_kv; every range lies in 0 <= start <= stop <= S_kv.

    The constructor checks type and shape. `from_intervals` checks the values too (use it for data from outside). The
    attention operators never read beyond a tensor: on the CPU a wrong range raises ValueError, on CUDA, where looking
    would stall the stream, what lies outside 0 to S_kv is cut.
    Do not write into `intervals`, which slices and batches share; `overwrite_mask` does, for captured CUDA graphs.

    A mask says what rows see. The schedule that the attention kernels make of it (`showo_ext.ops._mask_plan`) is kept
    beside it, as long as the mask lives: all layers of a model, forward and backward, and all steps of a generation
    share it. So do the masks that `rows` and `take_rows` return: the same selection gives the same object. A copy, a
    pickled mask and a mask on another device start without either.
    """

    intervals: Tensor
    kv_length: int
    _kept: Kept = field(init=False)

    def __post_init__(self) -> None:
        check_tensor("intervals", self.intervals, (torch.int32,))
        check_shape("intervals", self.intervals, "B", "rows", f"1 to {MAX_INTERVALS}", 2)
        check_int("intervals.shape[2]", self.intervals.size(2), 1, MAX_INTERVALS)
        check_int("kv_length", self.kv_length, 0)
        object.__setattr__(self, "_kept", Kept())
        if not self._kept.traced and self.intervals.is_inference():
            with normal_tensors():
                object.__setattr__(self, "intervals", self.intervals.clone())

    def __reduce__(self) -> tuple[Any, ...]:
        return OmniMask, (self.intervals, self.kv_length)

    # ---- shape ------------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return self.intervals.size(0)

    @property
    def q_length(self) -> int:
        return self.intervals.size(1)

    @property
    def num_intervals(self) -> int:
        return self.intervals.size(2)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, S_q, S_kv), the shape of `to_dense()`."""
        return (self.batch_size, self.q_length, self.kv_length)

    @property
    def device(self) -> torch.device:
        return self.intervals.device

    @property
    def density(self) -> float:
        """Fraction of (row, column) pairs that are allowed; 0.0 for a mask without pairs."""
        pairs = self.batch_size * self.q_length * self.kv_length
        return self.columns_per_row().sum().item() / pairs if pairs else 0.0

    def columns_per_row(self) -> Tensor:
        """Number of allowed columns of each row: int64 [B, S_q]."""
        start, stop = mask_formats.merge(self.intervals).long().unbind(-1)
        return (stop - start).sum(-1)

    # ---- from and to other forms ------------------------------------------------------------------------------------

    @classmethod
    def from_intervals(cls, intervals: Tensor, kv_length: int) -> OmniMask:
        """Mask from int32 [B, S_q, K, 2] ranges. ValueError if a range is outside 0 <= start <= stop <= kv_length.

        Ranges are sorted and merged, and K shrinks to what the fullest row needs.
        """
        mask = cls(intervals, kv_length)
        start, stop = intervals.unbind(-1)
        bad = (start < 0) | (start > stop) | (stop > kv_length)
        if bool(bad.any()):
            b, r, k = (int(x) for x in bad.nonzero()[0])
            raise ValueError(
                f"intervals[{b}, {r}, {k}] is {intervals[b, r, k].tolist()}, expected [start, stop] with "
                f"0 <= start <= stop <= kv_length, {kv_length}"
            )
        merged = mask_formats.merge(mask.intervals)
        used = int((merged[..., 1] > merged[..., 0]).sum(-1).max()) if merged.numel() else 1
        return cls(merged[:, :, : max(used, 1)].contiguous(), kv_length)

    @classmethod
    def from_dense(cls, dense: Tensor) -> OmniMask:
        """Mask from bool [B, S_q, S_kv] or [B, 1, S_q, S_kv], True = may look.

        ValueError if a row needs more than 8 intervals.
        """
        check_tensor("dense", dense, (torch.bool,))
        if dense.dim() == 4 and dense.size(1) == 1:
            dense = dense[:, 0]
        if dense.dim() != 3:
            raise ValueError(f"dense has shape {list(dense.shape)}, expected [B, S_q, S_kv] or [B, 1, S_q, S_kv]")
        return cls(mask_formats.runs(dense, "dense"), dense.size(2))

    def to_dense(self) -> Tensor:
        """bool [B, S_q, S_kv], True where the row may look at the column."""
        column = torch.arange(self.kv_length, dtype=torch.int32, device=self.device)
        start, stop = self.intervals.unsqueeze(-1).unbind(-2)  # [B, S_q, K, 1]
        return ((column >= start) & (column < stop)).any(2)

    # ---- formats (rules and sources: showo_ext.mask_formats) --------------------------------------------------------

    @classmethod
    def causal(
        cls, batch: int, length: int, *, kv_length: int | None = None, device: torch.device | str | None = None
    ) -> OmniMask:
        """Causal, aligned at the end: with kv_length > length the rows are the last `length` places (KV cache)."""
        kv = length if kv_length is None else kv_length
        return cls(mask_formats.causal(batch, length, kv, torch.device(device or "cpu")), kv)

    @classmethod
    def full(
        cls, batch: int, length: int, *, kv_length: int | None = None, device: torch.device | str | None = None
    ) -> OmniMask:
        """Every row sees every column."""
        kv = length if kv_length is None else kv_length
        return cls(mask_formats.full(batch, length, kv, torch.device(device or "cpu")), kv)

    @classmethod
    def sliding_window(
        cls,
        batch: int,
        length: int,
        left: int | None,
        right: int | None = 0,
        *,
        kv_length: int | None = None,
        device: torch.device | str | None = None,
    ) -> OmniMask:
        """Each row sees its own column, `left` columns before and `right` behind it; None: all. Aligned at the end, as
        `causal` is; a row whose window ends before the first column sees nothing."""
        kv, where = length if kv_length is None else kv_length, torch.device(device or "cpu")
        return cls(mask_windows.sliding_window(batch, length, kv, left, right, where), kv)

    @classmethod
    def cache_seqlens(
        cls, cache_seqlens: Tensor, length: int, slots: int, *, left: int | None = None, right: int | None = 0
    ) -> OmniMask:
        """`length` rows against a KV cache of `slots` slots, of which sample b has filled the first cache_seqlens[b],
        the rows' own at the end of them. cache_seqlens: integer [B]. left, right: as in `sliding_window`."""
        return cls(mask_windows.cache_seqlens(cache_seqlens, length, slots, left, right), slots)

    @classmethod
    def from_cu_seqlens(
        cls,
        cu_seqlens: Tensor,
        length: int,
        *,
        kv_cu_seqlens: Tensor | None = None,
        kv_length: int | None = None,
        left: int | None = None,
        right: int | None = 0,
    ) -> OmniMask:
        """Sequences one after the other in a row of `length` places, none seeing another: sequence n has the places
        cu_seqlens[n] to cu_seqlens[n + 1], of the columns kv_cu_seqlens' (default: the same). cu_seqlens: integer
        [sequences + 1], rising from 0; what lies behind its last sees nothing. left, right: as in `sliding_window`."""
        ends, kv = kv_cu_seqlens, length if kv_length is None else kv_length
        return cls(mask_windows.cu_seqlens(cu_seqlens, ends, length, kv, left, right), kv)

    @classmethod
    def prefix(cls, prefix: Tensor, length: int) -> OmniMask:
        """Every row sees the first prefix[b] columns, and is causal after them. prefix: integer [B]."""
        return cls(mask_formats.prefix(prefix, length), length)

    @classmethod
    def t2i(cls, ids: Tensor, *, pad_id: int, soi_id: int, eoi_id: int) -> OmniMask:
        """Text to image, `[PAD]* t2i sot text eot soi codes eoi`.

        Text is causal and blind to padding, image rows see everything but padding. ids: integer [B, S].
        """
        return cls(mask_formats.from_ids(ids, "t2i", pad_id=pad_id, soi_id=soi_id, eoi_id=eoi_id), ids.size(1))

    @classmethod
    def t2i_padded(
        cls, padding: Tensor | Sequence[int], *, text_length: int = 129, image_length: int = 258
    ) -> OmniMask:
        """The t2i mask from the number of left pads of each sample alone (image_length counts soi and eoi)."""
        padding = torch.as_tensor(padding)
        return cls(mask_formats.t2i_padded(padding, text_length, image_length), text_length + image_length)

    @classmethod
    def lm(cls, ids: Tensor) -> OmniMask:
        """Text only, `sot text eot [PAD]*`: plain causal, since right padding comes after everything.

        ids: integer [B, S]; only its shape and device count.
        """
        mask_formats.check_ids(ids)
        return cls.causal(ids.size(0), ids.size(1), device=ids.device)

    @classmethod
    def mmu(cls, ids: Tensor, *, soi_id: int, eoi_id: int) -> OmniMask:
        """Understanding, `mmu soi codes eoi sot text eot [PAD]*`.

        Every row sees everything up to its own sample's (first) eoi and is causal after it. ids: integer [B, S].
        """
        return cls(mask_formats.from_ids(ids, "mmu", pad_id=None, soi_id=soi_id, eoi_id=eoi_id), ids.size(1))

    @classmethod
    def mmu_vit(
        cls,
        batch: int,
        length: int,
        *,
        image_start: int | Tensor = 30,
        image_tokens: int = 576,
        device: torch.device | str | None = None,
    ) -> OmniMask:
        """Understanding with CLIP features, `mmu system(28) soi [features] eoi text`.

        Causal, and besides every row sees the image's columns (not soi and eoi).
        image_start: first feature column, one int or integer [B] (28 system tokens: 1 + 28 + 1 = 30).
        """
        where = torch.device(device) if device is not None else None
        return cls(mask_formats.mmu_vit(batch, length, image_start, image_tokens, where), length)

    @classmethod
    def lvg(cls, ids: Tensor, *, pad_id: int, soi_id: int, eoi_id: int) -> OmniMask:
        """Several images in a row: causal without padding, each image bidirectional inside its own soi..eoi."""
        return cls(mask_formats.from_ids(ids, "lvg", pad_id=pad_id, soi_id=soi_id, eoi_id=eoi_id), ids.size(1))

    @classmethod
    def lvg_v2(cls, ids: Tensor, *, pad_id: int, soi_id: int, eoi_id: int) -> OmniMask:
        """As lvg, but text rows see no image columns (one interval per run of text; ValueError beyond 8 runs)."""
        return cls(mask_formats.from_ids(ids, "lvg_v2", pad_id=pad_id, soi_id=soi_id, eoi_id=eoi_id), ids.size(1))

    @classmethod
    def packed(
        cls,
        ids: Tensor,
        samples: Tensor,
        formats: Sequence[Sequence[str]],
        *,
        pad_id: int,
        soi_id: int,
        eoi_id: int,
    ) -> OmniMask:
        """Several samples of mixed formats in one row; samples never see each other.

        ids: integer [B, S]. samples: integer [B, S], the number (0, 1, ...) of the sample a place belongs to, -1 for
        unused places (their rows see nothing); each sample is one contiguous run. formats[b][n]: format of sample n of
        row b, one of "t2i", "lm", "mmu", "mmu_vit", "lvg", "lvg_v2", "causal", "full". For "mmu_vit" the image columns
        lie between soi and eoi.
        """
        intervals = mask_formats.packed(ids, samples, formats, pad_id=pad_id, soi_id=soi_id, eoi_id=eoi_id)
        return cls(intervals, ids.size(1))

    # ---- slices, batches, devices -----------------------------------------------------------------------------------

    def rows(self, start: int | None, stop: int | None = None) -> OmniMask:
        """The mask of query rows start..stop (Python slice rules), columns unchanged: some rows against a KV cache.

        Equal rows give the same object, as long as this mask keeps it: the last eight selections.
        """

        def select() -> OmniMask:
            return OmniMask(self.intervals[:, start:stop], self.kv_length)

        if torch.compiler.is_compiling():
            return select()
        return self._kept.selection(slice(start, stop).indices(self.q_length), select)

    def take_rows(self, index: Tensor) -> OmniMask:
        """The mask of the query rows named by index: integer [N], the same of every sample, or [B, N].

        The same unchanged index tensor gives the same object, as with `rows`; one made under torch.inference_mode,
        which cannot tell whether it has been written to, gives a new mask every time.
        """
        check_tensor("index", index, (torch.int32, torch.int64))
        if index.dim() != 1 and (index.dim() != 2 or index.size(0) != self.batch_size):
            raise ValueError(f"index has shape {list(index.shape)}, expected [N] or [{self.batch_size}, N]")

        def select() -> OmniMask:
            if index.dim() == 1:
                return OmniMask(self.intervals[:, index], self.kv_length)
            batch = torch.arange(self.batch_size, dtype=torch.int64, device=index.device).unsqueeze(1)
            return OmniMask(self.intervals[batch, index], self.kv_length)

        if torch.compiler.is_compiling() or index.is_inference():
            return select()
        return self._kept.selection((id(index), index._version), select, index)

    def columns(self, start: int, stop: int) -> OmniMask:
        """The mask of columns start..stop only, renumbered from 0: a KV cache filled so far.

        ValueError unless 0 <= start <= stop <= kv_length.
        """
        if not 0 <= start <= stop <= self.kv_length:
            raise ValueError(f"columns is {start}, {stop}, expected 0 <= start <= stop <= kv_length, {self.kv_length}")
        return OmniMask(self.intervals.clamp(start, stop) - start, stop - start)

    def samples(self, start: int | None, stop: int | None = None) -> OmniMask:
        """The masks of batch entries start..stop (Python slice rules)."""
        return OmniMask(self.intervals[start:stop], self.kv_length)

    def expand(self, batch: int) -> OmniMask:
        """The same mask for `batch` samples (batch_size must be 1 or batch); shares memory."""
        if self.batch_size not in (1, batch):
            raise ValueError(f"batch is {batch}, expected {self.batch_size}; only a mask of batch 1 can expand")
        return OmniMask(self.intervals.expand(batch, -1, -1, -1), self.kv_length)

    @staticmethod
    def cat(masks: Sequence[OmniMask]) -> OmniMask:
        """Masks of equal row and column numbers, one batch after the other."""
        if not masks:
            raise ValueError("masks has no entry, expected at least one OmniMask")
        shapes = [m.shape[1:] for m in masks]
        if any(s != shapes[0] for s in shapes):
            raise ValueError(f"masks has (rows, columns) of {shapes}, expected the same of all")
        most = max(m.num_intervals for m in masks)
        parts = [mask_formats.widen(m.intervals, most) for m in masks]
        return OmniMask(torch.cat(parts), masks[0].kv_length)

    @staticmethod
    def block_diagonal(rows: Sequence[Sequence[OmniMask]], length: int | None = None) -> OmniMask:
        """Pack ready masks: row b holds the batch-1 square masks rows[b] one after the other, none seeing another.

        length: length of the packed rows (default: the longest); places behind the last sample see nothing.
        """
        if not rows or not any(rows):
            raise ValueError("rows has no entry, expected at least one OmniMask")
        parts = [m for row in rows for m in row]
        if any(m.batch_size != 1 or m.q_length != m.kv_length for m in parts):
            raise ValueError(f"rows has masks of shape {[m.shape for m in parts]}, expected (1, S, S) of all")
        totals = [sum(m.kv_length for m in row) for row in rows]
        size = max(totals) if length is None else length
        if size < max(totals):
            raise ValueError(f"length is {size}, expected at least {max(totals)}, the places of the longest row")
        most = max(m.num_intervals for m in parts)
        out = torch.zeros((len(rows), size, most, 2), dtype=torch.int32, device=parts[0].device)
        for b, row in enumerate(rows):
            at = 0
            for m in row:
                out[b, at : at + m.kv_length, : m.num_intervals] = m.intervals[0] + at
                at += m.kv_length
        return OmniMask(out, size)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> OmniMask:
        intervals = self.intervals.to(device, non_blocking=non_blocking)
        return self if intervals is self.intervals else OmniMask(intervals, self.kv_length)

    # ---- looking at it ----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        density = "?" if self.device.type == "meta" else f"{self.density:.3f}"
        return (
            f"OmniMask(batch={self.batch_size}, rows={self.q_length}, columns={self.kv_length}, "
            f"intervals={self.num_intervals}, density={density}, device={self.device})"
        )

    def draw(self, sample: int = 0, width: int = 64) -> str:
        """A sample's mask as text, at most `width` cells a side: '#' all pairs of a cell are allowed, '+' some."""
        dense = self.to_dense()[sample].float().cpu()
        if dense.numel() == 0:
            return ""
        size = (min(width, dense.size(0)), min(width, dense.size(1)))
        cells = torch.nn.functional.adaptive_avg_pool2d(dense[None], size)[0]
        return "\n".join("".join("." if c == 0 else "#" if c == 1 else "+" for c in line) for line in cells.tolist())
