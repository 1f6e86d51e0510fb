"""Who may look at whom: the mask rules of every Show-o sequence format, as column intervals built in O(S).

Plain tensor functions behind `showo_ext.mask.OmniMask`; all return int32 [B, S, K, 2] half-open [start, stop) ranges.
The rules are those of the published masks (showlab/Show-o, training/prompting_utils.py). For row i of a sample at
places lo..hi-1, whose first and last non-pad places are cs and ce-1 (an image is its soi..eoi inclusive, eoi its end):

    format   K              text row                  image row   pad row
    causal   1              [lo, i+1)                 the same    the same        (lm is the same format)
    full     1              [lo, hi)                  the same    the same
    t2i      1              [cs, i+1)                 [cs, ce)    causal in its own run of pads
    mmu      1              [lo, max(i+1, first eoi + 1)) for every row; later images see up to their own eoi
    mmu_vit  2              [lo, i+1) and the columns between the first soi and its eoi, for every row
    lvg      1              [cs, i+1)                 [cs, eoi]   causal in its own run of pads
    lvg_v2   runs of text   text, causally, and cs    [cs, eoi]   causal in its own run of pads

Where this differs from the published code, it repairs it:
- mmu: each sample's own eoi counts (there: the first sample's for the whole batch), a sample without eoi is causal.
- t2i: any number of images in a row, rows without image, left and right padding (there: one image, left padding).
  Its image rows see later places, so data with several images should use lvg.
- lvg, lvg_v2: text before the first image is blind to padding too; samples may have different numbers of images; "text"
  is every place that is neither pad nor inside soi..eoi, whatever its id; the always visible column of lvg_v2 is the
  sample's first non-pad place (there: column 0, even when it is a pad).
- An image whose eoi is missing ends with the sample's last non-pad place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo_ext._checks import check_int, check_same_shape, check_shape, check_tensor

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_INTERVALS = 8
FORMATS = ("causal", "lm", "full", "t2i", "mmu", "mmu_vit", "lvg", "lvg_v2")
_CODE = {name: code for code, name in enumerate(FORMATS)}


# ---- tools over intervals -------------------------------------------------------------------------------------------


def widen(intervals: Tensor, count: int) -> Tensor:
    """Pad K to `count` with empty intervals."""
    return torch.nn.functional.pad(intervals, (0, 0, 0, count - intervals.size(2)))


def merge(intervals: Tensor) -> Tensor:
    """Sorted, disjoint, non-touching ranges with the same union; unused slots at the end become (0, 0). Same shape."""
    count = intervals.size(2)
    if count == 1:
        return intervals
    start, stop = intervals.unbind(-1)
    empty = stop <= start
    far = torch.iinfo(torch.int32).max
    order = start.masked_fill(empty, far).sort(dim=-1).indices
    start, stop = start.masked_fill(empty, far).gather(-1, order), stop.masked_fill(empty, 0).gather(-1, order)
    reach = stop.cummax(-1).values
    fresh = torch.ones_like(start, dtype=torch.bool)
    fresh[..., 1:] = start[..., 1:] > reach[..., :-1]
    slot = fresh.cumsum(-1) - 1
    out_start = torch.full_like(start, far).scatter_reduce(-1, slot, start, "amin")
    out_stop = torch.zeros_like(stop).scatter_reduce(-1, slot, stop, "amax")
    out_start = out_start.masked_fill(out_start == far, 0)
    return torch.stack([out_start, out_stop], -1)


def runs(flags: Tensor, name: str) -> Tensor:
    """The runs of True of every row, as intervals: int32 [B, S, K, 2], K what the fullest row needs, at least 1.

    flags: bool [B, S, columns], called `name` in the ValueError that a row of more than 8 runs raises.
    """
    batch, rows, _ = flags.shape
    padded = torch.nn.functional.pad(flags, (1, 1))
    border = padded[..., 1:] != padded[..., :-1]  # of each run in turn its first column, and the column behind its last
    if int(border.count_nonzero()) == 2 * batch * rows:  # one run in each row, most likely: padding, a window
        row, column = border.flatten(0, 1).nonzero(as_tuple=True)
        if torch.equal(row[::2], torch.arange(batch * rows, dtype=torch.int64, device=flags.device)):
            return column.view(batch, rows, 1, 2).to(torch.int32)
    count = border.sum(-1).flatten() // 2
    most = int(count.max()) if count.numel() else 0
    if most > MAX_INTERVALS:
        bad = int((count > MAX_INTERVALS).nonzero()[0])
        raise ValueError(
            f"{name}[{bad // rows}, {bad % rows}] has {int(count[bad])} intervals, expected at most {MAX_INTERVALS}"
        )
    row, column = border.flatten(0, 1).nonzero(as_tuple=True)
    row = row[::2]
    first = count.cumsum(0) - count  # the number of the first run of each row, counted over all rows
    rank = torch.arange(row.numel(), dtype=torch.int64, device=flags.device) - first[row]
    out = torch.zeros((batch * rows, max(most, 1), 2), dtype=torch.int32, device=flags.device)
    out[row, rank] = column.view(-1, 2).to(torch.int32)
    return out.unflatten(0, (batch, rows))


def check_ids(ids: Tensor, name: str = "ids") -> None:
    check_tensor(name, ids, (torch.int32, torch.int64))
    check_shape(name, ids, "B", "S")


def _stack(start: Tensor, stop: Tensor) -> Tensor:
    return torch.stack([start, stop], -1).to(torch.int32).unsqueeze(-2)


def _place(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.int64, device=device)


# ---- formats that need lengths only ---------------------------------------------------------------------------------


def _check_size(**sizes: int) -> None:
    for name, value in sizes.items():
        check_int(name, value, 0)


def causal(batch: int, length: int, kv_length: int, device: torch.device) -> Tensor:
    _check_size(batch=batch, length=length)
    check_int("kv_length", kv_length, length)
    stop = _place(length, device) + (kv_length - length + 1)
    return _stack(torch.zeros_like(stop), stop).expand(batch, length, 1, 2)


def full(batch: int, length: int, kv_length: int, device: torch.device) -> Tensor:
    _check_size(batch=batch, length=length, kv_length=kv_length)
    one = torch.tensor([0, kv_length], dtype=torch.int32, device=device)
    return one.expand(batch, length, 1, 2)


def prefix(prefix: Tensor, length: int) -> Tensor:
    _check_size(length=length)
    check_tensor("prefix", prefix, INTEGER_DTYPES)
    check_shape("prefix", prefix, "B")
    stop = torch.maximum(_place(length, prefix.device) + 1, prefix.clamp(0, length).unsqueeze(1))
    return _stack(torch.zeros_like(stop), stop)


def t2i_padded(padding: Tensor, text_length: int, image_length: int) -> Tensor:
    _check_size(text_length=text_length, image_length=image_length)
    check_tensor("padding", padding, INTEGER_DTYPES)
    check_shape("padding", padding, "B")
    if padding.numel() and not 0 <= int(padding.min()) <= int(padding.max()) <= text_length:
        raise ValueError(f"padding is {padding.tolist()}, expected 0 to text_length, {text_length}")
    pads = padding.unsqueeze(1)
    length = text_length + image_length
    row = _place(length, padding.device).expand(padding.size(0), -1)
    start = torch.where(row < pads, 0, pads)
    stop = torch.where(row >= text_length, length, row + 1)
    return _stack(start, stop)


def mmu_vit(
    batch: int, length: int, image_start: int | Tensor, image_tokens: int, device: torch.device | None
) -> Tensor:
    _check_size(batch=batch, length=length, image_tokens=image_tokens)
    first = torch.as_tensor(image_start, device=device)
    check_tensor("image_start", first, INTEGER_DTYPES)
    if first.dim() > 0:
        check_shape("image_start", first, batch)
    if first.numel() and not 0 <= int(first.min()) <= int(first.max()) <= length - image_tokens:
        raise ValueError(
            f"image_start is {first.tolist()}, expected 0 to {length - image_tokens}, "
            f"where {image_tokens} image tokens fit a length of {length}"
        )
    first = first.reshape(-1, 1).expand(batch, 1)
    row = _place(length, first.device).expand(batch, length)
    return _two(torch.zeros_like(row), row + 1, first, first + image_tokens)


def _two(lo: Tensor, stop: Tensor, image_start: Tensor, image_stop: Tensor) -> Tensor:
    """[lo, stop) and [image_start, image_stop), joined where they touch: [B, S, 2, 2]."""
    apart = (image_start > stop) & (image_stop > image_start)
    first_stop = torch.where(apart, stop, torch.where(image_stop > image_start, torch.maximum(stop, image_stop), stop))
    zero = torch.zeros_like(stop)
    first = _stack(lo, first_stop)
    second = _stack(torch.where(apart, image_start, zero), torch.where(apart, image_stop, zero))
    return torch.cat([first, second], 2)


# ---- formats read off token ids -------------------------------------------------------------------------------------


def from_ids(ids: Tensor, name: str, *, pad_id: int | None, soi_id: int, eoi_id: int) -> Tensor:
    """One sample of one format per row."""
    check_ids(ids)
    lo = torch.zeros_like(ids, dtype=torch.int64)
    hi = torch.full_like(lo, ids.size(1))
    pad = ids == pad_id if pad_id is not None else torch.zeros_like(ids, dtype=torch.bool)
    return _Layout(pad, ids == soi_id, ids == eoi_id, lo, hi).intervals(name)


def packed(
    ids: Tensor, samples: Tensor, formats: Sequence[Sequence[str]], *, pad_id: int, soi_id: int, eoi_id: int
) -> Tensor:
    """Mixed samples in one row; see OmniMask.packed."""
    check_ids(ids)
    check_ids(samples, "samples")
    check_same_shape("samples", samples, "ids", ids.shape)
    if len(formats) != ids.size(0):
        raise ValueError(f"formats has {len(formats)} entries, expected {ids.size(0)}, one per row of ids")
    unknown = {name for row in formats for name in row} - set(FORMATS)
    if unknown:
        raise ValueError(f"formats has unknown names {sorted(unknown)}, expected names among {list(FORMATS)}")
    batch, length = ids.shape
    samples = samples.long()
    counts = torch.tensor([len(row) for row in formats], dtype=torch.int64, device=ids.device).unsqueeze(1)
    if bool(((samples < -1) | (samples >= counts)).any()):
        raise ValueError(
            f"samples has numbers from {int(samples.min())} to {int(samples.max())}, expected -1 to "
            "len(formats[b]) - 1 in every row b"
        )

    # A sample's run of places: where its number begins and ends.
    row = _place(length, ids.device).expand(batch, length)
    change = torch.ones_like(ids, dtype=torch.bool)
    change[:, 1:] = samples[:, 1:] != samples[:, :-1]
    for b in range(batch):
        begun = samples[b][change[b] & (samples[b] >= 0)].tolist()
        if len(begun) != len(set(begun)):
            raise ValueError(f"samples[{b}] has a sample in several runs, expected one contiguous run each")
    lo = torch.where(change, row, 0).cummax(1).values
    final = torch.ones_like(change)  # last place of a run
    final[:, :-1] = change[:, 1:]
    hi = _next(final) + 1

    layout = _Layout(ids == pad_id, ids == soi_id, ids == eoi_id, lo, hi)
    widest = max((len(f) for f in formats), default=0)
    listed = [[_CODE[n] for n in f] + [-1] * (widest + 1 - len(f)) for f in formats]
    codes = torch.tensor(listed, dtype=torch.int64, device=ids.device)
    code = codes.reshape(batch, widest + 1).gather(1, samples.clamp(min=0)).masked_fill(samples < 0, -1)
    present = sorted({name for f in formats for name in f}, key=FORMATS.index)
    parts = {n: layout.intervals(n, code == _CODE[n]) for n in present}
    most = max((p.size(2) for p in parts.values()), default=1)
    out = torch.zeros((batch, length, most, 2), dtype=torch.int32, device=ids.device)
    for name, part in parts.items():
        out = torch.where((code == _CODE[name])[..., None, None], widen(part, most), out)
    return out


def _next(flags: Tensor) -> Tensor:
    """Index of the first True at or after each place, S if none: int64 [B, S]."""
    length = flags.size(1)
    index = torch.where(flags, _place(length, flags.device), length)
    return index.flip(1).cummin(1).values.flip(1)


def _last(flags: Tensor) -> Tensor:
    """Index of the last True at or before each place, -1 if none: int64 [B, S]."""
    return torch.where(flags, _place(flags.size(1), flags.device), -1).cummax(1).values


def _at(values: Tensor, index: Tensor, default: int) -> Tensor:
    """values[b, index], `default` where the index is outside."""
    length = values.size(1)
    if length == 0:
        return index
    inside = (index >= 0) & (index < length)
    return torch.where(inside, values.gather(1, index.clamp(0, length - 1)), default)


class _Layout:
    """What the formats need to know about each place [B, S]: its sample's extent, pads, and its image's extent."""

    def __init__(self, pad: Tensor, soi: Tensor, eoi: Tensor, lo: Tensor, hi: Tensor) -> None:
        length = pad.size(1)
        self.row = _place(length, pad.device).expand(pad.shape)
        self.lo, self.hi = lo, hi
        self.begin = torch.minimum(
            _at(_next(~pad), lo, length), hi
        )  # cs: first non-pad place of the sample, hi if none
        self.end = torch.maximum(_at(_last(~pad), hi - 1, -1) + 1, self.begin)  # ce: one past its last non-pad place
        self.outside = (self.row < self.begin) | (self.row >= self.end)  # pad rows
        self.pad_start = torch.where(self.row < self.begin, lo, self.end)

        next_eoi, next_soi = _next(eoi), _next(soi)
        soi_place = _last(soi)
        stop = _at(next_eoi, soi_place, length) + 1
        self.closed = stop <= hi  # the image has its eoi
        self.image_stop = torch.where(self.closed, stop, self.end)  # one past this image's eoi
        self.image = (soi_place >= lo) & (self.row < self.image_stop) & ~self.outside

        first_eoi = _at(next_eoi, lo, length)
        self.first_eoi_stop = torch.where(first_eoi < hi, first_eoi + 1, 0)
        first_soi = _at(next_soi, lo, length)
        features = torch.where(first_soi < hi, first_soi + 1, 0)
        feature_stop = _at(next_eoi, features - 1, length)
        self.features = features
        self.feature_stop = torch.where(features > 0, torch.where(feature_stop < hi, feature_stop, self.end), 0)

    def intervals(self, name: str, where: Tensor | None = None) -> Tensor:
        """int32 [B, S, K, 2] for one format. where: bool [B, S], the places that count (lvg_v2's K depends on it)."""
        up_to_here = self.row + 1
        if name in ("causal", "lm"):
            return _stack(self.lo, up_to_here)
        if name == "full":
            return _stack(self.lo, self.hi)
        if name == "mmu":
            stop = torch.maximum(up_to_here, self.first_eoi_stop)
            return _stack(self.lo, torch.where(self.image & self.closed, torch.maximum(stop, self.image_stop), stop))
        if name == "mmu_vit":
            return _two(self.lo, up_to_here, self.features, self.feature_stop)
        start = torch.where(self.outside, self.pad_start, self.begin)
        if name == "t2i":
            return _stack(start, torch.where(self.image, self.end, up_to_here))
        in_order = _stack(start, torch.where(self.image, self.image_stop, up_to_here))
        if name == "lvg":
            return in_order
        assert name == "lvg_v2", name
        return self._text_runs(in_order, where)

    def _text_runs(self, in_order: Tensor, where: Tensor | None) -> Tensor:
        """lvg_v2: text rows see only the runs of text places begun so far (and the sample's first place)."""
        text_row = ~self.outside & ~self.image
        if where is not None:
            text_row = text_row & where
        column = (~self.outside & ~self.image) | (self.row == self.begin)
        first = column.clone()  # first place of a run: its left neighbour is no text, or another sample's
        first[:, 1:] &= ~column[:, :-1] | (self.lo[:, 1:] == self.row[:, 1:])
        begun = first.cumsum(1)  # runs begun up to and including each place
        before = torch.where(self.lo > 0, _at(begun, self.lo - 1, 0), 0)  # of them, those of earlier samples
        count = torch.where(text_row, begun - before, 1)
        most = int(count.max()) if count.numel() else 1
        if most > MAX_INTERVALS:
            b = int(count.max(1).values.argmax())
            raise ValueError(
                f"ids[{b}] has a sample with {most} runs of text, expected at most {MAX_INTERVALS} for lvg_v2"
            )

        # Tables of the runs of each row, one spare entry for places that begin none.
        runs = int(begun.max()) if begun.numel() else 0
        last = column.clone()
        last[:, :-1] &= ~column[:, 1:] | first[:, 1:]
        table = torch.zeros((column.size(0), runs + 1, 2), dtype=torch.int64, device=column.device)
        table[..., 0].scatter_(1, torch.where(first, begun - 1, runs), self.row)
        table[..., 1].scatter_(1, torch.where(last, begun - 1, runs), self.row + 1)

        run = before.unsqueeze(2) + torch.arange(most, dtype=torch.int64, device=column.device)  # [B, S, K]
        valid = (run < begun.unsqueeze(2)) & text_row.unsqueeze(2)
        flat = torch.where(valid, run, runs).flatten(1).unsqueeze(-1).expand(-1, -1, 2)
        spans = table.gather(1, flat).reshape(*run.shape, 2)
        start, stop = spans[..., 0], torch.minimum(spans[..., 1], (self.row + 1).unsqueeze(2))
        text = torch.stack([start, stop], -1).masked_fill(~valid.unsqueeze(-1), 0).to(torch.int32)
        return torch.where(text_row[..., None, None], text, widen(in_order, most))
