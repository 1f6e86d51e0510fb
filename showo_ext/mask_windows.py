"""Windows of columns around a row's own place, as decoders in general have them, as column intervals built in O(S).

Plain tensor functions behind `showo_ext.mask.OmniMask`, as those of `showo_ext.mask_formats`. Rows and columns of a
sequence are aligned at its end, as in flash-attn from 2.1 on: the last row's own column is the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._checks import check_int, check_same_shape, check_shape, check_tensor
from showo_ext.mask_formats import INTEGER_DTYPES, _check_size, _place, _stack


def _window(own: Tensor, start: int | Tensor, stop: int | Tensor, left: int | None, right: int | None) -> Tensor:
    """Of the columns [start, stop): `left` before a row's own place, which may lie outside, to `right` behind it."""
    for name, value in (("left", left), ("right", right)):
        if value is not None:
            check_int(name, value, 0)
    start, stop = (torch.as_tensor(x, dtype=torch.int64, device=own.device).expand_as(own) for x in (start, stop))
    first = start if left is None else torch.minimum(torch.maximum(own - left, start), stop)
    end = stop if right is None else torch.minimum(own + right + 1, stop)
    return _stack(first, torch.maximum(end, first))


def sliding_window(
    batch: int, length: int, kv_length: int, left: int | None, right: int | None, device: torch.device
) -> Tensor:
    _check_size(batch=batch, length=length, kv_length=kv_length)
    own = _place(length, device).unsqueeze(0) + (kv_length - length)
    return _window(own, 0, kv_length, left, right).expand(batch, length, 1, 2)


def cache_seqlens(seqlens: Tensor, length: int, slots: int, left: int | None, right: int | None) -> Tensor:
    _check_size(length=length, slots=slots)
    check_tensor("cache_seqlens", seqlens, INTEGER_DTYPES)
    check_shape("cache_seqlens", seqlens, "B")
    if _may_look_at(seqlens) and bool(((seqlens < 0) | (seqlens > slots)).any()):
        raise ValueError(f"cache_seqlens is {seqlens.tolist()}, expected 0 to slots, {slots}")
    stop = seqlens.long().unsqueeze(1)
    own = _place(length, seqlens.device) + (stop - length)
    return _window(own, 0, stop, left, right)


def cu_seqlens(
    rows: Tensor, columns: Tensor | None, length: int, kv_length: int, left: int | None, right: int | None
) -> Tensor:
    columns = rows if columns is None else columns
    _check_size(length=length, kv_length=kv_length)
    for name, ends, size in (("cu_seqlens", rows, length), ("kv_cu_seqlens", columns, kv_length)):
        check_tensor(name, ends, INTEGER_DTYPES)
        if ends.dim() != 1 or ends.size(0) < 2:
            raise ValueError(f"{name} has shape {list(ends.shape)}, expected [sequences + 1] with a sequence at least")
        if _may_look_at(ends) and not (ends[0] == 0 and bool((ends.diff() >= 0).all()) and ends[-1] <= size):
            raise ValueError(f"{name} is {ends.tolist()}, expected numbers that rise from 0 to at most {size}")
    check_same_shape("kv_cu_seqlens", columns, "cu_seqlens", rows.shape)
    rows, columns = rows.long(), columns.long()
    place = _place(length, rows.device)
    sequence = torch.searchsorted(rows, place, right=True)  # counted from 1; behind the last: one more than there are
    inside = sequence < rows.size(0)
    sequence = sequence.clamp(1, rows.size(0) - 1)
    start, stop = columns[sequence - 1], columns[sequence]
    own = place - rows[sequence] + stop
    return _window(own, torch.where(inside, start, 0), torch.where(inside, stop, 0), left, right).unsqueeze(0)


def _may_look_at(x: Tensor) -> bool:
    """Whether the values can be checked: on a GPU that would stall the stream, and a traced graph has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
