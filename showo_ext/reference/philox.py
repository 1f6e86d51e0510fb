"""Philox4x32-10 in plain torch: the noise of every sampling operator, bit for bit that of ``csrc/common/philox.h``."""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_SAMPLE, STREAM_REMASK, STREAM_CORRUPT = 1, 2, 3

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds over int64 tensors that hold 32-bit words (broadcast together); returns the four output words.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). An int64 product wraps modulo
    2^64, so its high word is the shifted product with the sign extension masked off.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(
    seed: int | Tensor, stream: int, step: int | Tensor, rows: int, positions: int, elements: int, device: torch.device
) -> Tensor:
    """fp32 uniforms in (0, 1), ``[rows, positions, elements]``, by the counter layout that philox.h documents.

    ``seed`` is one int for the batch, taken modulo 2^64 (or a 0-d tensor; rows are told apart by their index), or
    int64 ``[rows]``.
    """

    def words(values: int | Tensor) -> Tensor:
        if not isinstance(values, Tensor):
            values = (int(values) + 2**63) % 2**64 - 2**63  # any integer modulo 2^64, as int64 holds it
        return torch.as_tensor(values, dtype=torch.int64, device=device)

    seeds = words(seed).reshape(-1, 1, 1)
    seed_per_row = isinstance(seed, Tensor) and seed.dim() > 0
    row = torch.arange(1 if seed_per_row else rows, dtype=torch.int64, device=device)
    out = philox4x32(
        (
            torch.arange((elements + 3) // 4, dtype=torch.int64, device=device).reshape(1, 1, -1),
            torch.arange(positions, dtype=torch.int64, device=device).reshape(1, -1, 1),
            words(step).reshape(1, 1, 1) & _MASK,
            (stream << 24 | row).reshape(-1, 1, 1),
        ),
        (seeds & _MASK, (seeds >> 32) & _MASK),
    )
    blocks = torch.stack(torch.broadcast_tensors(*out), dim=-1)
    blocks = blocks.expand(rows, positions, -1, -1).flatten(2)[..., :elements]
    return ((blocks >> 9) * 2 + 1).to(torch.float32) * 2.0**-24
