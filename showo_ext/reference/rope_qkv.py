"""Bias, QK-LayerNorm, partial rotary and head split of a projection, in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_tables(positions: Tensor, rotary_dim: int, *, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [B or 1, S, rotary_dim / 2] in fp32, of int64 positions [B, S], [1, S] or [S]."""
    positions = positions[None] if positions.dim() == 1 else positions
    exponent = torch.arange(rotary_dim // 2, device=positions.device, dtype=torch.float32) * (2 / max(rotary_dim, 1))
    angles = positions[..., None].float() * torch.exp(exponent * -math.log(theta))
    return angles.cos(), angles.sin()


def rope_qkv(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor],
    positions: Tensor | tuple[Tensor, Tensor],
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
    """q [B, H, S, D], k and v [B, H_kv, S, D] of qkv [B, S, (H + 2 H_kv) D] or its parts, every step in their dtype."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    qkv = torch.cat(qkv, dim=2) if isinstance(qkv, tuple) else qkv
    x = qkv if bias is None else qkv + bias.to(qkv.dtype)
    x = x.unflatten(-1, (num_heads + 2 * kv_heads, -1))
    q, k, v = x.split([num_heads, kv_heads, kv_heads], dim=2)
    if q_weight is not None:
        q = F.layer_norm(q, q.shape[-1:], _like(q_weight, q), _like(q_bias, q), eps)
        k = F.layer_norm(k, k.shape[-1:], _like(k_weight, k), _like(k_bias, k), eps)
    if isinstance(positions, tuple):
        cos, sin = positions
    else:
        cos, sin = rotary_tables(positions, q.shape[-1] if rotary_dim is None else rotary_dim, theta=theta)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rope_qkv_into_cache(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor],
    positions: Tensor | tuple[Tensor, Tensor],
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
    """q of `rope_qkv`; rows of its k and v are written to the slots, int64 [B, S], [1, S] or [S], of the caches."""
    q, k, v = rope_qkv(
        qkv,
        positions,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotary_dim=rotary_dim,
        theta=theta,
        bias=bias,
        q_weight=q_weight,
        q_bias=q_bias,
        k_weight=k_weight,
        k_bias=k_bias,
        eps=eps,
    )
    rows = slots.expand(k.shape[0], k.shape[2])[:, None, :, None].expand_as(k)
    for into, new in zip(cache, (k, v), strict=True):
        if bool(((slots < 0) | (slots >= into.shape[2])).any()):
            raise ValueError(f"slots has an entry out of range, expected values in [0, {into.shape[2]})")
        into.scatter_(2, rows, new)
    return q


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pairs (i, i + half) of the first dims of x [B, S, H, D] by angles [B or 1, S, half]."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
