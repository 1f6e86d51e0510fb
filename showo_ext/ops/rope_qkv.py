"""rope_qkv: a projection becomes q, k, v in one pass: bias, QK-LayerNorm, partial rotary, head split.

The projection is one tensor, with the heads of q, k, v in this order, or three. Every element is read once and written
once; with `rope_qkv_into_cache` k and v go to slots of a cache. Arithmetic is in fp32 and rounds once, at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import check_number
from showo_ext._native import Argument, launch, native
from showo_ext._operator import Operator
from showo_ext.ops._rope_inputs import (
    Projection,
    Rotary,
    head_dim,
    prepare,
    rotary_tables,
    rows_of_batch,
    split_projection,
    validate_cache,
)

__all__ = ["rope_qkv", "rope_qkv_into_cache", "rotary_tables"]

# ---------------------------------------------------------------- public functions


def rope_qkv(
    qkv: Projection,
    positions: Rotary,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary_dim: int | None = None,
    theta: float = 10000.0,
    bias: Tensor | None = None,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a projection: x = qkv + bias per head; q and k: LayerNorm over the head, then rotary.

    The first rotary_dim dims of each q and k head turn, in pairs (i, i + rotary_dim / 2). Parameters may be fp32 for
    any dtype of qkv, as under autocast, which changes nothing here. The results are made for `omni_attention`.

    Args:
        qkv: [B, S, (H + 2 H_kv) D], fp32, fp16 or bf16, D in 32, 64, 96, 128; any strides. Or three tensors (q, k, v),
            [B, S, H D], [B, S, H_kv D] and the same, as three linear layers give them.
        positions: int64 [B, S], [1, S] or [S]; or (cos, sin) from `rotary_tables`, which layers can share.
        num_heads, num_kv_heads: H and H_kv, which divides H; default H_kv = H. Of three tensors one number may be 0,
            for q alone or k and v alone; what is absent has width 0.
        rotary_dim: even, up to D; default D. With tables it is what they hold.
        theta: base of the angles; with tables it is not used.
        bias: [(H + 2 H_kv) D], in fp32 or qkv's dtype.
        q_weight, k_weight: [D]; both or none, and no QK-norm without them. q_bias, k_bias: [D], default zeros.
        eps: of the LayerNorm.

    Returns:
        q [B, H, S, D] in [B, S, H, D] memory order, so that attention's result flattens for free;
        k, v [B, H_kv, S, D], contiguous. In qkv's dtype.

    Differentiable once in qkv, bias and the norm's parameters; the gradients are the same in every run.

    Raises:
        TypeError, ValueError: arguments that do not fit, by name.
        NotImplementedError: no kernel for this device in this build, or a second derivative is asked for.
    """
    cos, sin, kv_heads, norm = prepare(
        qkv, positions, num_heads, num_kv_heads, rotary_dim, theta, bias, (q_weight, q_bias, k_weight, k_bias)
    )
    q, k, v = _FORWARD(*split_projection(qkv), cos, sin, bias, norm, num_heads, kv_heads, check_number("eps", eps))
    return q, k, v


def rope_qkv_into_cache(
    qkv: Projection,
    positions: Rotary,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rotary_dim: int | None = None,
    theta: float = 10000.0,
    bias: Tensor | None = None,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`rope_qkv` that writes k and v straight into a cache: row s of sample b becomes row slots[b, s] of the caches.

    Slots of one sample should differ: which of two rows with the same slot stays is not defined. No gradient.

    Args:
        cache: (k_cache, v_cache), each [B, H_kv, slots, D] in qkv's dtype; contiguous last dimension, else any strides.
        slots: int64 [B, S], [1, S] or [S].
        others: as for `rope_qkv`.

    Returns:
        q [B, H, S, D], as `rope_qkv` gives it.

    Raises:
        ValueError: also, on the CPU, for a slot outside the cache, before anything is written. On a CUDA device, where
            looking would stall the stream, the rows of such a slot are not written.
        RuntimeError: an argument requires grad while grad mode is on.
    """
    cos, sin, kv_heads, norm = prepare(
        qkv, positions, num_heads, num_kv_heads, rotary_dim, theta, bias, (q_weight, q_bias, k_weight, k_bias)
    )
    if not isinstance(cache, tuple) or len(cache) != 2:
        raise TypeError(f"cache has type {type(cache).__name__}, expected a tuple (k_cache, v_cache)")
    k_cache, v_cache = cache
    first, k_in, v_in = split_projection(qkv)
    validate_cache(first, k_cache, v_cache, kv_heads, head_dim(first, k_in, num_heads, kv_heads))
    slots = rows_of_batch("slots", slots, first)
    if torch.is_grad_enabled():
        given = (first, k_in, v_in, bias, norm, k_cache, v_cache)
        if any(x is not None and x.requires_grad for x in given):
            raise RuntimeError("rope_qkv_into_cache has no gradient: use rope_qkv, or call it under torch.no_grad()")
    return _INTO_CACHE(
        first, k_in, v_in, cos, sin, bias, norm, k_cache, v_cache, slots, num_heads, kv_heads, check_number("eps", eps)
    )


# ---------------------------------------------------------------- implementations


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(
    name: str,
    projection: tuple[Tensor, Tensor | None, Tensor | None],
    heads: tuple[Tensor, Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    eps: float,
    **more: Argument,
) -> None:
    """Launches what forward and backward share; `heads` are q, k, v or their gradients."""
    qkv = projection[0]
    if qkv.shape[0] * qkv.shape[1] == 0:
        return
    parts = [_rows_contiguous(x) for x in projection if x is not None]
    if len(parts) == 1:
        parts = list(parts[0].split([x.shape[1] * x.shape[3] for x in heads], dim=2))
    q_in, k_in, v_in = parts
    cos, sin = cos.contiguous(), sin.contiguous()
    q, k, v = heads
    launch(
        name,
        qkv,
        q_in=q_in,
        k_in=k_in,
        v_in=v_in,
        q_in_strides=q_in.stride()[:2],
        k_in_strides=k_in.stride()[:2],
        v_in_strides=v_in.stride()[:2],
        q=q,
        k=k,
        v=v,
        q_strides=q.stride()[:3],
        k_strides=k.stride()[:3],
        v_strides=v.stride()[:3],
        cos=cos,
        sin=sin,
        table_batch_stride=0 if cos.shape[0] == 1 else cos.stride(0),
        bias=None if bias is None else bias.contiguous(),
        norm=None if norm is None else norm.contiguous(),
        sizes=(*qkv.shape[:2], q.shape[1], k.shape[1], q.shape[3], 2 * cos.shape[2]),
        eps=eps,
        dtype=qkv.dtype,
        bias_dtype=qkv.dtype if bias is None else bias.dtype,
        **more,
    )


def _forward(
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = _forward_fake(qkv, k_in, v_in, cos, sin, bias, norm, num_heads, num_kv_heads, eps)
    projection = (qkv, k_in, v_in)
    _call(
        "rope_qkv_forward", projection, heads, cos, sin, bias, norm, eps, slots=None, slots_batch_stride=0, num_slots=0
    )
    return heads


def _into_cache(
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> Tensor:
    q = _empty_q(qkv, k_in, num_heads, num_kv_heads)
    slots = slots.contiguous()
    _call(
        "rope_qkv_forward",
        (qkv, k_in, v_in),
        (q, k_cache, v_cache),
        cos,
        sin,
        bias,
        norm,
        eps,
        slots=slots,
        slots_batch_stride=0 if slots.shape[0] == 1 else slots.stride(0),
        num_slots=k_cache.shape[2],
    )
    return q


def _backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dqkv, dbias, dnorm = _backward_fake(dq, dk, dv, qkv, k_in, v_in, cos, sin, bias, norm, num_heads, num_kv_heads, eps)
    if qkv.shape[0] * qkv.shape[1] == 0:
        return dqkv, dbias.zero_(), dnorm.zero_()
    module = native()
    chunks = module.rope_qkv_chunks(num_rows=qkv.shape[0] * qkv.shape[1], total_heads=num_heads + 2 * num_kv_heads)
    splits = module.rope_qkv_splits(total_heads=num_heads + 2 * num_kv_heads)
    # Partial sums, added below: the cut depends on the sizes alone, and so do the bits of the result.
    bias_parts = None if bias is None else dbias.new_empty((chunks, *dbias.shape))
    norm_parts = None if norm is None else dnorm.new_empty((chunks * splits, *dnorm.shape))
    _call(
        "rope_qkv_backward",
        (qkv, k_in, v_in),
        (_rows_contiguous(dq), _rows_contiguous(dk), _rows_contiguous(dv)),
        cos,
        sin,
        bias,
        norm,
        eps,
        dqkv=dqkv,
        in_three=k_in is not None,
        dbias=bias_parts,
        dnorm=norm_parts,
    )
    return dqkv, dbias if bias_parts is None else bias_parts.sum(0), dnorm if norm_parts is None else norm_parts.sum(0)


# ---------------------------------------------------------------- fake: allocates, for real tensors too


def _empty_q(qkv: Tensor, k_in: Tensor | None, num_heads: int, num_kv_heads: int) -> Tensor:
    shape = (*qkv.shape[:2], num_heads, head_dim(qkv, k_in, num_heads, num_kv_heads))
    return qkv.new_empty(shape).transpose(1, 2)


def _forward_fake(
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (qkv.shape[0], num_kv_heads, qkv.shape[1], head_dim(qkv, k_in, num_heads, num_kv_heads))
    return _empty_q(qkv, k_in, num_heads, num_kv_heads), qkv.new_empty(shape), qkv.new_empty(shape)


def _into_cache_fake(
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> Tensor:
    return _empty_q(qkv, k_in, num_heads, num_kv_heads)


def _backward_fake(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    k_in: Tensor | None,
    v_in: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    bias: Tensor | None,
    norm: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the whole projection, and in fp32 of bias and norm; empty ones where there is no such input."""
    dbias = qkv.new_empty((0,) if bias is None else bias.shape, dtype=torch.float32)
    dnorm = qkv.new_empty((0,) if norm is None else norm.shape, dtype=torch.float32)
    shape = qkv.shape if k_in is None else (qkv.numel() + 2 * k_in.numel(),)  # q's, k's, v's one after another
    return qkv.new_empty(shape), dbias, dnorm


# ---------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, k_in, v_in, cos, sin, bias, norm, ctx.num_heads, ctx.num_kv_heads, ctx.eps = inputs
    ctx.save_for_backward(qkv, k_in, v_in, bias, norm)
    # The tables need no gradient. As a plain attribute they may have been made under torch.inference_mode.
    ctx.tables = cos, sin


def _gradient(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    qkv, k_in, v_in, bias, norm = ctx.saved_tensors
    dqkv, dbias, dnorm = _BACKWARD(
        dq, dk, dv, qkv, k_in, v_in, *ctx.tables, bias, norm, ctx.num_heads, ctx.num_kv_heads, ctx.eps
    )
    parts = (dqkv, None, None)
    if k_in is not None:
        flat = dqkv.split([qkv.numel(), k_in.numel(), k_in.numel()])
        parts = tuple(x.view(like.shape) for x, like in zip(flat, (qkv, k_in, v_in), strict=True))
    bias_gradient = None if bias is None else dbias.to(bias.dtype)
    return *parts, None, None, bias_gradient, None if norm is None else dnorm, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "rope_qkv has no second derivative; showo_ext.reference.rope_qkv can be differentiated twice"
    )


# ---------------------------------------------------------------- registration

# qkv is the whole projection where k_in and v_in are absent, else q's.
_INPUTS = "Tensor qkv, Tensor? k_in, Tensor? v_in, Tensor cos, Tensor sin, Tensor? bias, Tensor? norm"
_SIZES = "int num_heads, int num_kv_heads, float eps"
_FORWARD = Operator(
    f"rope_qkv_forward({_INPUTS}, {_SIZES}) -> (Tensor q, Tensor k, Tensor v)",
    _forward,
    _forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_BACKWARD = Operator(
    f"rope_qkv_backward(Tensor dq, Tensor dk, Tensor dv, {_INPUTS}, {_SIZES}) -> (Tensor dqkv, Tensor dbias, "
    "Tensor dnorm)",
    _backward,
    _backward_fake,
    backward=_no_second_derivative,
)
_INTO_CACHE = Operator(
    f"rope_qkv_into_cache({_INPUTS}, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, {_SIZES}) -> Tensor",
    _into_cache,
    _into_cache_fake,
)
