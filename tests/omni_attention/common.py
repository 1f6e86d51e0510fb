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


def full_but_one_row(rows: int, columns: int) -> OmniMask:
    """Batch entry r of `rows`: every row sees all columns, but row r misses the last."""
    intervals = torch.zeros(rows, rows, 1, 2, dtype=torch.int32)
    intervals[..., 1] = columns - torch.eye(rows, dtype=torch.int32).unsqueeze(-1)
    return OmniMask(intervals, columns)


def assert_lse(lse: Tensor, oracle_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: OmniMask, scale: float) -> None:
    """lse is fp32 whatever the dtype, and its error is that of the largest score; -inf where there is no column."""
    finite = oracle_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert bool((lse[~finite] == -torch.inf).all())
    peer_lse = reference.omni_attention(*(x.float() for x in (q, k, v)), mask, scale=scale, return_lse=True)[1]
    norms = [float(x.double().norm(dim=-1).max()) if k.numel() else 0.0 for x in (q, k)]
    score = norms[0] * norms[1] * abs(scale)
    assert max_error(lse, oracle_lse) <= 1.5 * max_error(peer_lse, oracle_lse) + score * 2**-23 + 1e-6
