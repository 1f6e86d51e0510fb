"""The tensors by which other libraries hand a mask from layer to layer, and the `OmniMask` that each stands for.

Three kinds: column intervals (`OmniMask.intervals`), dense bool masks and dense additive masks. A model gives the same
tensor to all of its layers, so the `OmniMask` of a tensor is made once and kept as long as the tensor lives.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from showo_ext._checks import FLOAT_DTYPES, check_tensor
from showo_ext._operator import Operator
from showo_ext.mask import MAX_INTERVALS, OmniMask
from showo_ext.mask_formats import runs, widen

# An additive entry up to this value hides a column: the lowest finite float16, which is what models in float16 write.
HIDDEN = torch.finfo(torch.float16).min

_MADE = WeakTensorKeyDictionary()  # mask tensor -> (its version, the OmniMask)


def mask_of(mask: Tensor, q_length: int, kv_length: int) -> OmniMask:
    """The `OmniMask` that a mask tensor stands for.

    Args:
        mask: column intervals, int32 [B or 1, q_length, 1 to 8, 2]; or a dense mask, [B or 1, heads, q_length,
            kv_length], the same for all heads, or [q_length, kv_length]: bool, True where a row sees a
            column, or floating, 0 where it does and float16's lowest number or less where it does not.

    A row that sees nothing gives zeros (a softmax over hidden columns alone would give the average of all columns).
    Tensors made under torch.inference_mode do not tell whether they were written to: their mask is made in every call.

    Raises:
        TypeError: mask is no tensor of these dtypes.
        ValueError: its shape does not fit; heads differ; an additive entry is neither 0 nor hidden; a row sees more
            than 8 intervals of columns. Inside torch.compile the last three are found when the graph runs.
        NotImplementedError: mask requires grad: a learned bias is no mask.
    """
    check_tensor("attention_mask", mask, (torch.int32, torch.bool, *FLOAT_DTYPES, torch.float64))
    if mask.dtype == torch.int32:
        _check_intervals(mask, q_length)
    else:
        _check_dense(mask, q_length, kv_length)
    if torch.compiler.is_compiling() or mask.is_inference():
        return _make(mask, kv_length)
    version, made = _MADE.get(mask, (None, None))
    if made is None or version != mask._version or made.kv_length != kv_length:
        # `data` shares memory and nothing else: an OmniMask that held the tensor would keep its own entry alive.
        made = _make(mask.data, kv_length)
        _MADE[mask] = (mask._version, made)
    return made


def _make(mask: Tensor, kv_length: int) -> OmniMask:
    return OmniMask(mask if mask.dtype == torch.int32 else intervals_of(mask), kv_length)


def plain_mask(causal: bool, q_length: int, kv_length: int, device: torch.device) -> OmniMask:
    """The causal or full mask of batch 1 for layers that are given no tensor; the same object for all of them."""
    make = _make_plain if torch.compiler.is_compiling() else _kept_plain
    return make(causal, q_length, kv_length, device)


def _make_plain(causal: bool, q_length: int, kv_length: int, device: torch.device) -> OmniMask:
    make = OmniMask.causal if causal else OmniMask.full
    return make(1, q_length, kv_length=kv_length, device=device)


_kept_plain = functools.lru_cache(maxsize=8)(_make_plain)


def intervals_of(mask: Tensor) -> Tensor:
    """The intervals of a dense mask, as `mask_of` takes it: int32 [B or 1, S_q, K, 2].

    K is what the fullest row needs, or 8 in a traced graph, where sizes must not depend on values.
    """
    return _INTERVALS(mask) if torch.compiler.is_compiling() else _dense_intervals(mask)


def padding_intervals(shown: Tensor) -> Tensor:
    """The same of bool [B, S_kv], which columns every row sees: int32 [B, 1, K, 2]."""
    if torch.compiler.is_compiling():
        return intervals_of(shown[:, None, None])
    return runs(shown[:, None], "attention_mask")


def _check_intervals(mask: Tensor, q_length: int) -> None:
    if mask.dim() != 4 or mask.size(1) != q_length or mask.size(3) != 2:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)} and dtype int32, expected intervals [B, {q_length}, "
            f"1 to {MAX_INTERVALS}, 2] (OmniMask.intervals), or a dense mask of dtype bool"
        )


def _check_dense(mask: Tensor, q_length: int, kv_length: int) -> None:
    if mask.dim() not in (2, 4) or mask.shape[-2:] != (q_length, kv_length):
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, expected [B or 1, 1, {q_length}, {kv_length}], "
            f"a row for each query and a column for each key, or [{q_length}, {kv_length}]"
        )
    if mask.requires_grad:
        raise NotImplementedError(
            "attention_mask requires grad; omni_attention has no additive bias that can be learned"
        )


def _dense_intervals(mask: Tensor) -> Tensor:
    heads = mask[(None,) * (4 - mask.dim())]
    if heads.stride(0) == 0:  # made with `expand`
        heads = heads[:1]
    dense = heads[:, 0]
    if heads.size(1) != 1 and bool((heads != heads[:, :1]).any()):
        raise ValueError("attention_mask has heads that see different columns, expected the same mask for all heads")
    if dense.dtype == torch.bool:
        return runs(dense, "attention_mask")
    seen = dense == 0
    odd = ~(seen | (dense <= HIDDEN))
    if bool(odd.any()):
        place = tuple(int(x) for x in odd.nonzero()[0])
        raise ValueError(
            f"attention_mask is {float(dense[place])} for {place} (sample, row, column), expected 0 for a column that "
            f"the row sees, or {HIDDEN} and less for a hidden one: other biases are no mask"
        )
    return runs(seen, "attention_mask")


# ---- the same as an operator, for traced graphs ----------------------------------------------------------------------


def _all_intervals(mask: Tensor) -> Tensor:
    batch = mask.size(0) if mask.dim() == 4 else 1
    found = widen(_dense_intervals(mask), MAX_INTERVALS)
    return found.expand(batch, -1, -1, -1).contiguous()


def _all_intervals_fake(mask: Tensor) -> Tensor:
    batch = mask.size(0) if mask.dim() == 4 else 1
    return mask.new_empty((batch, mask.size(-2), MAX_INTERVALS, 2), dtype=torch.int32)


_INTERVALS = Operator("dense_mask_intervals(Tensor mask) -> Tensor", _all_intervals, _all_intervals_fake)
