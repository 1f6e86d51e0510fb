"""omni_attention: attention under an `OmniMask`, one fused kernel forward and one backward.

    scores = scale q k^T, with a softcap softcap tanh(scores / softcap), -inf outside the mask
    lse = log sum_j exp(scores_j);  out = exp(scores - lse) v

Blocks that no row of a batch entry sees are never visited. On CUDA, calls with up to 16 query rows (a KV cache) take
kernels of their own, which split the columns and need no block table (`_decode`). The same bits every time, except
for dq of 16-bit CUDA tensors unless `deterministic` asks for it. Backward follows FlashAttention (Dao et al., 2022):
probabilities are recomputed from lse, nothing of size S_q x S_kv is kept.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from showo_ext._checks import (
    FLOAT_DTYPES,
    check_contiguous_rows,
    check_number,
    check_same_device,
    check_same_dtype,
    check_same_shape,
    check_shape,
    check_tensor,
    check_type,
    in_autocast,
)
from showo_ext._native import Argument, launch, native, runs_on_cuda
from showo_ext._operator import Operator
from showo_ext.mask import OmniMask
from showo_ext.ops import _decode
from showo_ext.ops._attention_inputs import (
    aligned,
    check_head_dim,
    launch_arguments,
    pad_head_dim,
    rows_contiguous,
    strides_fit,
)
from showo_ext.ops._mask_plan import BLOCK, PLAN_SCHEMA, MaskPlan, plan_of


@overload
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: Literal[False] = False,
    deterministic: bool | None = None,
) -> Tensor: ...
@overload
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: Literal[True],
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]: ...
def omni_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    *,
    scale: float | Tensor | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T over the columns that mask allows) v.

    Args:
        q: [B, H, S_q, D], float32, float16 or bfloat16; any strides, last dimension contiguous. D is a multiple of 8 up
            to 256; on CUDA D above 128 is there in 16 bits alone, and where no gradient is asked for. The kernels have
            32, 64, 96, 128 and 256: for a D in between every call copies q, k and v with zeros behind each row.
        k, v: [B, H_kv, S_kv, D], dtype and device of q; H_kv divides H: query head h reads kv head h // (H / H_kv).
        mask: OmniMask with S_q rows and S_kv columns, of batch B or 1, on the device of q.
        scale: factor of the scores, default 1 / sqrt(D); a number, or a 0-d float32 or float64 tensor on the device of
            q, for one that changes from call to call or is learned. A tensor multiplies q first, in fp32, and the
            product is rounded to q's dtype: results differ by that rounding from those of the number.
        softcap: bounds the scores: softcap tanh(scores / softcap), as in Gemma 2. A number from 2^-126 to 2^127. In 16
            bits on CUDA a softcap up to 128 leaves scores off by softcap / 2^21, far less than what rounding does.
        return_lse: also return the natural-log normaliser of each row.
        deterministic: whether the gradients must have the same bits every time. On CUDA in 16 bits that costs two more
            products per block (seven instead of five); everywhere else it is so anyway. None: what
            torch.are_deterministic_algorithms_enabled() says when this function is called.

    Returns:
        [B, H, S_q, D] in q's dtype and memory order, computed in float32; with return_lse also float32 [B, H, S_q].
        Rows without columns give zeros and lse = -inf. NaN in a row's own inputs gives NaN in that row.

    What takes no part may hold anything, NaN included; zeros stand for it, and its gradients are zero: k and v of a
    column that no row of the batch entry sees, and in a row without columns q and the gradients of the results. NaN in
    k or v of a column that some row sees may reach any row of the batch entry.

    However large v is, its average does not overflow, but for float32 on CUDA: probabilities are summed there before
    they are normalised, each at most 2^8, and where |v| exceeds 2^120 / S_kv (1.3e36 / S_kv), results may be infinite
    or NaN although the average is finite.

    Differentiable once in q, k and v, through both results. Under autocast the inputs are cast to the autocast dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices, strides or intervals that do not fit.
        NotImplementedError: no kernel for this device in this build, or a second derivative is asked for.
    """
    trained = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (q, k, v))
    _validate(q, k, v, mask, trained)
    q, factor = _split_scale(q, scale)
    cap = 0.0 if softcap is None else check_number("softcap", softcap, 2.0**-126, 2.0**127, "None or a number above 0")
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    head_dim = q.size(-1)
    q, k, v = (pad_head_dim(x) for x in (q, k, v))
    out, lse = _FORWARD(q, k, v, *plan_of(mask, q, trained=trained, capped=cap != 0.0), factor, deterministic, cap)
    out = out if out.size(-1) == head_dim else out[..., :head_dim]
    return (out, lse) if return_lse else out


# ---- validation -----------------------------------------------------------------------------------------------------


def _validate(q: Tensor, k: Tensor, v: Tensor, mask: OmniMask, trained: bool) -> None:
    check_type("mask", mask, OmniMask, "an OmniMask (see OmniMask.from_dense)")
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x, FLOAT_DTYPES)
        check_same_device(name, x.device, "q", q)
        if x.dtype != q.dtype and not in_autocast(q):
            check_same_dtype(name, x, "q", q)
    check_shape("q", q, "B", "heads", "length", "head_dim")
    batch, heads, q_length, head_dim = q.shape
    check_head_dim(q, trained=trained)
    check_shape("k", k, batch, "heads", "length", head_dim)
    check_same_shape("v", v, "k", k.shape)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_contiguous_rows(name, x)
    kv_heads = k.size(1)
    if (kv_heads == 0) != (heads == 0) or (kv_heads and heads % kv_heads):
        raise ValueError(f"k has {kv_heads} heads, expected a divisor of q's {heads}")
    check_same_device("mask", mask.device, "q", q)
    if mask.q_length != q_length or mask.kv_length != k.size(2) or mask.batch_size not in (1, batch):
        raise ValueError(f"mask has shape {list(mask.shape)}, expected [{batch} or 1, {q_length}, {k.size(2)}]")


def _split_scale(q: Tensor, scale: float | Tensor | None) -> tuple[Tensor, float]:
    """q, and the number that the kernels take for scale. The kernels read no scale from the device: a tensor goes into
    q, which costs one pass over q and gives the tensor its gradient."""
    if scale is None:
        return q, q.size(-1) ** -0.5
    if not isinstance(scale, Tensor):
        return q, check_number("scale", scale)
    check_tensor("scale", scale, (torch.float32, torch.float64))
    check_same_device("scale", scale.device, "q", q)
    check_shape("scale", scale)
    return (q.float() * scale.float()).to(q.dtype), 1.0


# ---- implementations -------------------------------------------------------------------------------------------------


def _empty_out(q: Tensor) -> Tensor:
    """An empty tensor in q's memory order, so that [B, S, H, D] projections come back as such and reshape for free."""
    out = torch.empty_like(q)
    # empty_like keeps any stride of a dim of size 1, also one that the CUDA kernels' 16-byte stores cannot take.
    return out if strides_fit(out) else torch.empty_like(q, memory_format=torch.contiguous_format)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    states: Tensor | None,
    seen: Tensor | None,
    order: Tensor | None,
    tile_rows: int,
    scale: float,
    deterministic: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    out = _empty_out(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    plan = MaskPlan(intervals, states, seen, order, tile_rows)
    results: dict[str, Argument] = {"out": out, "lse": lse, "out_strides": out.stride()[:3]}
    if not runs_on_cuda(q):
        launch("omni_attention_forward", q, **launch_arguments(q, k, v, plan, scale, softcap), **results)
    elif order is None:
        _decode.decode(q, k, v, plan, scale, out, lse, softcap=softcap)
    else:
        q, k, v = aligned(q), aligned(k), aligned(v)
        launch(
            "omni_attention_forward",
            q,
            **launch_arguments(q, k, v, plan, scale, softcap),
            **results,
            tile_rows=tile_rows,
            order=order,
            order_length=order.size(0),
        )
    return out, lse


def _backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    states: Tensor | None,
    seen: Tensor | None,
    order: Tensor | None,
    tile_rows: int,
    out: Tensor,
    lse: Tensor,
    scale: float,
    deterministic: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.numel() == 0 or k.numel() == 0:
        return _zeros(q), _zeros(k), _zeros(v)
    dout, out, lse = rows_contiguous(dout), rows_contiguous(out), lse.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    on_cuda = runs_on_cuda(q)
    if on_cuda:
        q, k, v, out, dout = (aligned(x) for x in (q, k, v, out, dout))
    arguments: dict[str, Argument] = {
        **launch_arguments(q, k, v, MaskPlan(intervals, states, seen, order, tile_rows), scale, softcap),
        "out": out,
        "lse": lse,
        "dout": dout,
        "dlse": dlse,
        "out_strides": out.stride()[:3],
        "dout_strides": dout.stride()[:3],
    }
    return _backward_cuda(q, k, arguments, deterministic) if on_cuda else _backward_cpu(q, k, arguments)


def _backward_cpu(q: Tensor, k: Tensor, arguments: dict[str, Argument]) -> tuple[Tensor, Tensor, Tensor]:
    """dk and dv come as several summands, so that few heads can still keep many threads busy."""
    summands = native().omni_attention_backward_summands(
        batch=q.size(0), heads=q.size(1), kv_heads=k.size(1), q_length=q.size(2)
    )
    dq = torch.empty(q.shape, dtype=torch.float32)
    dk = torch.empty((summands, *k.shape), dtype=torch.float32)
    dv = torch.empty_like(dk)
    launch("omni_attention_backward", q, **arguments, dq=dq, dk=dk, dv=dv, summands=summands)
    summed = [x[0] if summands == 1 else x.sum(0) for x in (dk, dv)]
    return dq.to(q.dtype), summed[0].to(k.dtype), summed[1].to(k.dtype)


def _backward_cuda(
    q: Tensor, k: Tensor, arguments: dict[str, Argument], deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where bits may differ, dq is summed by atomic additions in fp32: a workspace of four bytes per element of q."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, k))
    tiles = q.size(0) * q.size(1) * -(-q.size(2) // BLOCK)
    stats = torch.empty((tiles, 192), dtype=torch.float32, device=q.device)  # kOmniBackwardStats
    sums = None
    if not deterministic and q.dtype != torch.float32:
        sums = torch.zeros((tiles, BLOCK * q.size(3)), dtype=torch.float32, device=q.device)
    launch("omni_attention_backward", q, **arguments, dq=dq, dk=dk, dv=dv, stats=stats, dq_sums=sums)
    return dq, dk, dv


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device)


# ---- fake -----------------------------------------------------------------------------------------------------------


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    states: Tensor | None,
    seen: Tensor | None,
    order: Tensor | None,
    tile_rows: int,
    scale: float,
    deterministic: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return _empty_out(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _backward_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    states: Tensor | None,
    seen: Tensor | None,
    order: Tensor | None,
    tile_rows: int,
    out: Tensor,
    lse: Tensor,
    scale: float,
    deterministic: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


# ---- autograd -------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *plan, scale, deterministic, softcap = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse)
    # The plan needs no gradient. As a plain attribute it may hold tensors that were made under torch.inference_mode.
    ctx.plan, ctx.numbers = plan, (scale, deterministic, softcap)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    dq = dk = dv = None
    if dout is not None or dlse is not None:
        if dout is None:
            dout = torch.zeros_like(out)
        dq, dk, dv = _BACKWARD(dout, dlse, q, k, v, *ctx.plan, out, lse, *ctx.numbers)
    return dq, dk, dv, *[None] * (len(ctx.plan) + len(ctx.numbers))


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "omni_attention has no second derivative; showo_ext.reference.omni_attention can be differentiated twice"
    )


# ---- registration ----------------------------------------------------------------------------------------------------

_FORWARD = Operator(
    f"omni_attention_forward(Tensor q, Tensor k, Tensor v, {PLAN_SCHEMA}, float scale, bool deterministic=False, "
    "float softcap=0.0) -> (Tensor out, Tensor lse)",
    _forward,
    _forward_fake,
    backward=_autograd,
    setup_context=_setup_context,
    cast=3,
)
_BACKWARD = Operator(
    f"omni_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, {PLAN_SCHEMA}, "
    "Tensor out, Tensor lse, float scale, bool deterministic=False, float softcap=0.0)"
    " -> (Tensor dq, Tensor dk, Tensor dv)",
    _backward,
    _backward_fake,
    backward=_no_second_derivative,
)
