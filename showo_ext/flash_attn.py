"""flash-attn's functions on `omni_attention`: the names, arguments and layouts of flash-attn 2, from 2.1 on.

    from showo_ext import flash_attn_func          # instead of: from flash_attn import flash_attn_func
    out = flash_attn_func(q, k, v, causal=True)    # q [B, S, H, D]

As there, rows and columns are aligned at the end for `causal` and `window_size`, H_kv divides H, and results are
contiguous. What is there besides: the CPU, float32, differentiation of the lse. What is not, raises
NotImplementedError with a reason: dropout, ALiBi, paged caches, rotary embedding inside the call, caches by index.

Two results differ. With return_attn_probs the third one is None: probabilities are nowhere kept. Rows without columns
have an lse of -inf, where flash-attn says +inf; their outputs are zeros here and there.

The mask of a call, with its plan, is kept for the next calls with equal sizes or with the same, unchanged tensors of
lengths: the layers of a model share it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import FLOAT_DTYPES, check_int, check_same_dtype, check_same_shape, check_shape, check_tensor
from showo_ext._kept import Kept
from showo_ext._operator import dispatch_is_plain, transforms_are_active
from showo_ext.mask import OmniMask
from showo_ext.mask_formats import INTEGER_DTYPES
from showo_ext.ops.omni_attention import omni_attention

Result = Tensor | tuple[Tensor, Tensor, None]
Window = tuple[int, int]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of [B, S, H, D].

    Args:
        q: [B, S_q, H, D], float32, float16 or bfloat16. Sizes, strides and devices: see `omni_attention`.
        k, v: [B, S_kv, H_kv, D].
        dropout_p, alibi_slopes: only 0.0 and None.
        softmax_scale: of the scores, default 1 / sqrt(D).
        causal: row i sees the columns up to i + S_kv - S_q.
        window_size: (left, right): row i sees the columns from i + S_kv - S_q - left to i + S_kv - S_q + right; -1: no
            bound.
        softcap: above 0, scores become softcap tanh(scores / softcap).
        deterministic: as `omni_attention` has it; False leaves the choice to torch's own switch.
        return_attn_probs: return (out, softmax_lse, None) instead of out.

    Returns:
        out [B, S_q, H, D] in q's dtype, contiguous; softmax_lse float32 [B, H, S_q].

    Raises:
        TypeError, ValueError: as `omni_attention`.
        NotImplementedError: dropout, ALiBi, or what `omni_attention` has no kernel for.
    """
    _refuse(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check(name, x, "B", "length", "heads", "head_dim")
    left, right = _window(causal, window_size)
    rows, columns = q.size(1), k.size(1)

    def mask() -> OmniMask:
        return OmniMask.sliding_window(1, rows, left, right, kv_length=columns, device=q.device)

    mask_of_call = _kept_mask(q, (rows, columns, left, right), mask)
    out, lse = _attend(q, k, v, mask_of_call, softmax_scale, softcap, deterministic)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """Attention of sequences that lie one after the other, none seeing another.

    Args:
        q: [total_q, H, D]. k, v: [total_k, H_kv, D].
        cu_seqlens_q, cu_seqlens_k: int32 [sequences + 1], rising from 0: sequence n has the rows cu_seqlens_q[n] to
            cu_seqlens_q[n + 1] and the columns cu_seqlens_k[n] to cu_seqlens_k[n + 1]. Rows behind the last sequence
            give zeros. On the CPU a wrong order is a ValueError; on CUDA nothing outside k and v is read.
        max_seqlen_q, max_seqlen_k: not needed.
        block_table: only None.
        The others: as in `flash_attn_func`, per sequence.

    Returns:
        out [total_q, H, D], contiguous; softmax_lse float32 [H, total_q].
    """
    _refuse(dropout_p=dropout_p, alibi_slopes=alibi_slopes, block_table=block_table)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check(name, x, "places", "heads", "head_dim")
    left, right = _window(causal, window_size)
    rows, columns = q.size(0), k.size(0)

    def mask() -> OmniMask:
        return OmniMask.from_cu_seqlens(
            cu_seqlens_q, rows, kv_cu_seqlens=cu_seqlens_k, kv_length=columns, left=left, right=right
        )

    mask_of_call = _kept_mask(q, (rows, columns, left, right), mask, cu_seqlens_q, cu_seqlens_k)
    q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    out, lse = _attend(q, k, v, mask_of_call, softmax_scale, softcap, deterministic)
    return (out.squeeze(0), lse.squeeze(0), None) if return_attn_probs else out.squeeze(0)


@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new rows against a KV cache, into which k and v are written first. No gradients, as there.

    Args:
        q: [B, S_q, H, D].
        k_cache, v_cache: [B, slots, H_kv, D].
        k, v: [B, S_new, H_kv, D], written to the slots from cache_seqlens[b] on; or None.
        cache_seqlens: how many slots are filled before: an int, an integer tensor [B], or None for all of them, which
            leaves no room for k and v. What lies behind is not read. On the CPU a length beyond the cache is a
            ValueError; on CUDA torch's device-side assertion stops a write there.
        causal, window_size: aligned at the end of what is filled, k and v included.
        num_splits: only 0: the kernels choose.
        rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, block_table, alibi_slopes: only None.
        The others: as in `flash_attn_func`.

    Returns:
        out [B, S_q, H, D], with return_softmax_lse also float32 [B, H, S_q].
    """
    _refuse(
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        block_table=block_table,
        alibi_slopes=alibi_slopes,
        num_splits=num_splits,
    )
    for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        _check(name, x, "B", "length", "heads", "head_dim")
    check_same_shape("v_cache", v_cache, "k_cache", k_cache.shape)
    batch, slots = k_cache.shape[:2]
    left, right = _window(causal, window_size)
    tensors = [cache_seqlens] if isinstance(cache_seqlens, Tensor) else []
    if tensors:
        lengths = tensors[0]
        check_tensor("cache_seqlens", lengths, INTEGER_DTYPES)
        check_shape("cache_seqlens", lengths, batch)
    else:
        number = slots if cache_seqlens is None else check_int("cache_seqlens", cache_seqlens, 0, slots)
        lengths = torch.full((batch,), number, dtype=torch.int32, device=q.device)
    if k is not None or v is not None:
        lengths = _append(k, v, k_cache, v_cache, lengths)

    def mask() -> OmniMask:
        return OmniMask.cache_seqlens(lengths, q.size(1), slots, left=left, right=right)

    new = 0 if k is None else k.size(1)
    key = ("cache", batch, q.size(1), slots, new, None if tensors else number, left, right)
    mask_of_call = _kept_mask(q, key, mask, *tensors)
    out, lse = _attend(q, k_cache, v_cache, mask_of_call, softmax_scale, softcap, False)
    return (out, lse) if return_softmax_lse else out


# ---- what the three share -------------------------------------------------------------------------------------------

REASONS = {
    "dropout_p": "the kernels have no dropout; drop elsewhere in the model, or use another attention for training",
    "alibi_slopes": "the kernels add nothing to scores; use positions by rotary embedding (showo_ext.rope_qkv)",
    "block_table": "caches are contiguous, none is paged; keep each sample's cache in one piece",
    "rotary_cos": "q and k are taken as they come; rotate them with showo_ext.rope_qkv before",
    "rotary_sin": "q and k are taken as they come; rotate them with showo_ext.rope_qkv before",
    "cache_batch_idx": "it would copy the cache; index the caches before the call",
    "cache_leftpad": "caches begin at slot 0; use showo_ext.omni_attention, whose masks may begin anywhere",
    "num_splits": "the kernels choose it by the sizes; leave it 0",
}


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if isinstance(value, Tensor) or value not in (None, 0):
            given = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise NotImplementedError(f"{name} is {given}, expected the default: {REASONS[name]}")


def _check(name: str, x: Tensor, *sizes: str) -> None:
    check_tensor(name, x, FLOAT_DTYPES)
    check_shape(name, x, *sizes)


def _window(causal: bool, window_size: Window) -> tuple[int | None, int | None]:
    """window_size as OmniMask has it: None for no bound."""
    if len(window_size) != 2:
        raise ValueError(f"window_size is {window_size}, expected (left, right)")
    left, right = (check_int("window_size", side, -1) for side in window_size)
    return None if left == -1 else left, 0 if causal else None if right == -1 else right


class _Masks(threading.local):
    def __init__(self) -> None:
        self.kept = Kept()


_MASKS = _Masks()


def _kept_mask(q: Tensor, key: Hashable, make: Callable[[], OmniMask], *lengths: Tensor) -> OmniMask:
    """The mask of an earlier call with this key and the same unchanged lengths, or a new one.

    Nothing is kept that belongs to a traced graph, a transform, the memory of a CUDA graph, or to tensors that cannot
    tell whether they have changed.
    """
    if (
        torch.compiler.is_compiling()
        or transforms_are_active()
        or not dispatch_is_plain((q, *lengths))
        or any(x.is_inference() for x in lengths)
        or (q.is_cuda and torch.cuda.is_current_stream_capturing())
    ):
        return make()
    tensors = tuple((id(x), x._version) for x in lengths)
    return _MASKS.kept.selection((key, q.device, tensors), make, lengths)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: OmniMask, scale: float | None, softcap: float, deterministic: bool
) -> tuple[Tensor, Tensor]:
    """out [B, S_q, H, D] and lse [B, H, S_q]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = omni_attention(
        q,
        k,
        v,
        mask,
        scale=scale,
        softcap=softcap if softcap != 0 else None,
        return_lse=True,
        deterministic=True if deterministic else None,
    )
    return out.transpose(1, 2).contiguous(), lse


def _append(k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """Writes k and v behind what the caches hold, and returns the lengths after that."""
    batch, slots, *row = k_cache.shape
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        check_tensor(name, x, FLOAT_DTYPES)
        assert x is not None
        check_same_dtype(name, x, f"{name}_cache", cache)
        check_shape(name, x, batch, "length", *row)
    assert k is not None
    assert v is not None
    check_same_shape("v", v, "k", k.shape)
    after = lengths + k.size(1)
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and bool((after > slots).any()):
        raise ValueError(f"cache_seqlens is {lengths.tolist()}, expected at most {slots - k.size(1)}, room for k and v")
    sample = torch.arange(batch, dtype=torch.int64, device=k.device).unsqueeze(1)
    slot = lengths.long().unsqueeze(1) + torch.arange(k.size(1), dtype=torch.int64, device=k.device)
    k_cache[sample, slot], v_cache[sample, slot] = k, v
    return after
