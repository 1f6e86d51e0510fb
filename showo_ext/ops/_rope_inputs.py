"""What rope_qkv takes: rotary tables, and the checks of its arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from showo_ext._checks import (
    FLOAT_DTYPES,
    HEAD_DIMS,
    check_contiguous_rows,
    check_int,
    check_number,
    check_same_device,
    check_same_dtype,
    check_same_shape,
    check_shape,
    check_tensor,
)
from showo_ext._inference import normal_tensors

Rotary = Tensor | tuple[Tensor, Tensor]
Projection = Tensor | tuple[Tensor, Tensor, Tensor]


def rotary_tables(positions: Tensor, rotary_dim: int, *, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions, for all layers of a model: angle i of a position is position theta^(-2 i / dim).

    Args:
        positions: int64 [B, S], [1, S] or [S].
        rotary_dim: even; how many dims of each head will turn.

    Returns:
        cos, sin: fp32 [B or 1, S, rotary_dim / 2], exact angles of positions below 2^24.
    """
    check_tensor("positions", positions, (torch.int64,))
    if positions.dim() not in (1, 2):
        raise ValueError(f"positions has shape {list(positions.shape)}, expected [B, S], [1, S] or [S]")
    rotary_dim = check_int("rotary_dim", rotary_dim, 0)
    if rotary_dim % 2:
        raise ValueError(f"rotary_dim is {rotary_dim}, expected an even number")
    theta = check_number("theta", theta, math.ulp(0.0), expected="a positive number")
    rows = positions[None] if positions.dim() == 1 else positions
    with normal_tensors():
        exponent = torch.arange(rotary_dim // 2, device=rows.device, dtype=torch.float32) * (2 / max(rotary_dim, 1))
        angles = rows[..., None].float() * torch.exp(exponent * -math.log(theta))
        return angles.cos(), angles.sin()


def split_projection(qkv: Projection) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The operator's qkv, k_in, v_in."""
    return qkv if isinstance(qkv, tuple) else (qkv, None, None)


def prepare(
    qkv: Projection,
    positions: Rotary,
    num_heads: int,
    num_kv_heads: int | None,
    rotary_dim: int | None,
    theta: float,
    bias: Tensor | None,
    norm: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor, int, Tensor | None]:
    """The operator's cos, sin [B or 1, S, rotary_dim / 2], number of kv heads and norm [4, D] in fp32."""
    few = 0 if isinstance(qkv, tuple) else 1
    num_heads = check_int("num_heads", num_heads, few)
    kv_heads = num_heads if num_kv_heads is None else check_int("num_kv_heads", num_kv_heads, few)
    if num_heads == kv_heads == 0:
        raise ValueError("num_kv_heads is 0, expected heads of q, or of k and v")
    if kv_heads and num_heads % kv_heads:
        raise ValueError(f"num_kv_heads is {kv_heads}, expected a divisor of num_heads, {num_heads}")
    first, dims = _validate_projection(qkv, num_heads, kv_heads)
    if bias is not None:
        _validate_parameter("bias", bias, first, (num_heads + 2 * kv_heads) * dims)
    cos, sin = _tables(first, positions, rotary_dim, dims, theta)
    return cos, sin, kv_heads, _pack_norm(first, norm, dims)


def _validate_projection(qkv: Projection, heads: int, kv_heads: int) -> tuple[Tensor, int]:
    """Its first tensor, and the size of a head."""
    if isinstance(qkv, tuple):
        if len(qkv) != 3:
            raise ValueError(f"qkv has {len(qkv)} parts, expected one tensor or (q, k, v)")
        named = {"q of qkv": (qkv[0], heads), "k of qkv": (qkv[1], kv_heads), "v of qkv": (qkv[2], kv_heads)}
    else:
        named = {"qkv": (qkv, heads + 2 * kv_heads)}
    for name, (x, count) in named.items():
        check_tensor(name, x, FLOAT_DTYPES)
        if x.dim() != 3 or x.shape[2] % max(count, 1):
            raise ValueError(f"{name} has shape {list(x.shape)}, expected [B, S, {count} * head_dim]")
    widest = next(name for name, (_, count) in named.items() if count)
    dims = named[widest][0].shape[2] // named[widest][1]
    if dims not in HEAD_DIMS:
        raise ValueError(f"{widest} has heads of {dims} numbers, expected one of {HEAD_DIMS}")
    (first_name, (first, count)), *others = named.items()
    check_shape(first_name, first, "B", "S", count * dims)
    for name, (x, count) in others:
        check_same_dtype(name, x, first_name, first)
        check_same_device(name, x.device, first_name, first)
        check_shape(name, x, *first.shape[:2], count * dims)
    return first, dims


def head_dim(qkv: Tensor, k_in: Tensor | None, heads: int, kv_heads: int) -> int:
    if k_in is not None and heads == 0:
        return k_in.shape[2] // kv_heads
    return qkv.shape[2] // (heads + 2 * kv_heads if k_in is None else heads)


def _validate_parameter(name: str, value: Tensor, qkv: Tensor, size: int) -> None:
    check_tensor(name, value, (torch.float32,) if qkv.dtype == torch.float32 else (qkv.dtype, torch.float32))
    check_same_device(name, value.device, "qkv", qkv)
    check_shape(name, value, size)


def rows_of_batch(name: str, value: Tensor, qkv: Tensor) -> Tensor:
    """int64 [B, S], [1, S] or [S] as [B or 1, S]."""
    check_tensor(name, value, (torch.int64,))
    check_same_device(name, value.device, "qkv", qkv)
    batch, length = qkv.shape[:2]
    rows = value[None] if value.dim() == 1 else value
    if rows.dim() != 2 or rows.shape[1] != length or rows.shape[0] not in (1, batch):
        raise ValueError(
            f"{name} has shape {list(value.shape)}, expected [{batch}, {length}], [1, {length}] or [{length}]"
        )
    return rows


def _tables(qkv: Tensor, positions: Rotary, rotary_dim: int | None, dims: int, theta: float) -> tuple[Tensor, Tensor]:
    if rotary_dim is not None:
        rotary_dim = check_int("rotary_dim", rotary_dim, 0, dims)
    if isinstance(positions, tuple):
        cos, sin = positions
        for name, table in (("cos", cos), ("sin", sin)):
            check_tensor(name, table, (torch.float32,))
            check_same_device(name, table.device, "qkv", qkv)
            if table.dim() != 3 or table.shape[1] != qkv.shape[1] or table.shape[0] not in (1, qkv.shape[0]):
                raise ValueError(
                    f"{name} has shape {list(table.shape)}, expected "
                    f"[{qkv.shape[0]} or 1, {qkv.shape[1]}, rotary_dim / 2]"
                )
        check_same_shape("sin", sin, "cos", cos.shape)
        held = 2 * cos.shape[2]
        if rotary_dim is not None and rotary_dim != held:
            raise ValueError(f"rotary_dim is {rotary_dim}, expected {held}, twice what the tables hold")
        if held > dims:
            raise ValueError(f"cos has shape {list(cos.shape)}, expected at most {dims // 2} angles")
        return cos, sin
    rows = rows_of_batch("positions", positions, qkv)
    return rotary_tables(rows, dims if rotary_dim is None else rotary_dim, theta=theta)


def _pack_norm(qkv: Tensor, norm: tuple[Tensor | None, ...], dims: int) -> Tensor | None:
    """Weight and bias of q, then of k, as fp32 [4, D]; torch carries the gradient back to each."""
    names = ("q_weight", "q_bias", "k_weight", "k_bias")
    for name, value in zip(names, norm, strict=True):
        if value is not None:
            _validate_parameter(name, value, qkv, dims)
    q_weight, q_bias, k_weight, k_bias = norm
    if q_weight is None and k_weight is None:
        if q_bias is not None or k_bias is not None:
            raise ValueError("q_weight is None, expected q_weight and k_weight where q_bias or k_bias is given")
        return None
    if q_weight is None or k_weight is None:
        raise ValueError(f"{'q' if q_weight is None else 'k'}_weight is None, expected both weights or none")
    missing = q_bias is None or k_bias is None
    zeros = torch.zeros(dims, dtype=torch.float32, device=qkv.device) if missing else None
    return torch.stack([zeros if x is None else x.float() for x in norm])  # type: ignore[misc]


def validate_cache(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, kv_heads: int, dims: int) -> None:
    for name, value in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_tensor(name, value, (qkv.dtype,))
        check_same_device(name, value.device, "qkv", qkv)
        check_shape(name, value, qkv.shape[0], kv_heads, "slots", dims)
        check_contiguous_rows(name, value)
    check_same_shape("v_cache", v_cache, "k_cache", k_cache.shape)
