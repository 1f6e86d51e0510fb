"""What the tests of the attention kernels share."""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext import OmniMask, reference
from showo_ext.testing import max_error, randn


def operands(
    mask: OmniMask, dim: int, dtype: torch.dtype, *, heads: int = 1, kv_heads: int = 1, seed: int = 0
) -> list[Tensor]:
    """q, k, v on the mask's device."""
    shapes = ((heads, mask.q_length), (kv_heads, mask.kv_length), (kv_heads, mask.kv_length))
    return [
        randn(mask.batch_size, h, n, dim, dtype=dtype, seed=seed + i, device=mask.device)
        for i, (h, n) in enumerate(shapes)
    ]


# By name: how many columns every row of a tile sees, and how many one row sees instead.
ONE_ROW_APART = {"full but one": (64, 63), "empty but one": (0, 64)}


def one_row_apart(rows: int, case: str) -> OmniMask:
    """64 columns, and batch entry r of `rows`, in which row r is the one that is unlike the others."""
    others, own = ONE_ROW_APART[case]
    stops = torch.full((rows, rows), others).fill_diagonal_(own)
    return OmniMask(torch.stack([torch.zeros_like(stops), stops], -1).int().unsqueeze(2), 64)


def assert_lse(lse: Tensor, oracle_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: OmniMask, scale: float) -> None:
    """lse is fp32 whatever the dtype, and its error is that of the largest score; -inf where there is no column."""
    finite = oracle_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert bool((lse[~finite] == -torch.inf).all())
    peer_lse = reference.omni_attention(*(x.float() for x in (q, k, v)), mask, scale=scale, return_lse=True)[1]
    norms = [float(x.double().norm(dim=-1).max()) if k.numel() else 0.0 for x in (q, k)]
    score = norms[0] * norms[1] * abs(scale)
    assert max_error(lse, oracle_lse) <= 1.5 * max_error(peer_lse, oracle_lse) + score * 2**-23 + 1e-6
