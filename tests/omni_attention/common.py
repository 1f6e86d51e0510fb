"""What the tests of the attention kernels share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from showo_ext import OmniMask, reference
from showo_ext.testing import assert_within_budget, max_error, randint, randn, rms_error


def operands(
    mask: OmniMask, dim: int, dtype: torch.dtype, *, heads: int = 1, kv_heads: int = 1, seed: int = 0
) -> list[Tensor]:
    """q, k, v on the mask's device."""
    shapes = ((heads, mask.q_length), (kv_heads, mask.kv_length), (kv_heads, mask.kv_length))
    return [
        randn(mask.batch_size, h, n, dim, dtype=dtype, seed=seed + i, device=mask.device)
        for i, (h, n) in enumerate(shapes)
    ]


def random_mask(batch: int, rows: int, columns: int, count: int, seed: int) -> OmniMask:
    """Up to `count` intervals a row, unsorted and overlapping; some rows empty, some with one column."""
    raw = randint(0, columns + 1, (batch, rows, count, 2), seed=seed).sort(-1).values.int()
    kind = randint(0, 10, (batch, rows, count), seed=seed + 1)
    raw[kind < 3] = 0
    row_kind = randint(0, 10, (batch, rows), seed=seed + 2)
    raw[row_kind == 0] = 0
    if columns > 0:
        one = randint(0, columns, (batch, rows, count, 1), seed=seed + 3).int()
        single = torch.cat([one, one + 1], -1)
        single[:, :, 1:] = 0
        raw = torch.where((row_kind == 1)[..., None, None], single, raw)
    return OmniMask(raw, columns)


SOFTCAPS = (None, None, None, 1.0, 20.0, 300.0)  # for searches

# By name: how many columns every row of a tile sees, and how many one row sees instead.
ONE_ROW_APART = {"full but one": (64, 63), "empty but one": (0, 64)}


def one_row_apart(rows: int, case: str) -> OmniMask:
    """64 columns, and batch entry r of `rows`, in which row r is the one that is unlike the others."""
    others, own = ONE_ROW_APART[case]
    stops = torch.full((rows, rows), others).fill_diagonal_(own)
    return OmniMask(torch.stack([torch.zeros_like(stops), stops], -1).int().unsqueeze(2), 64)


def assert_attention(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    scale: float,
    *,
    softcap: float | None = None,
    rms: bool = False,
) -> None:
    """Against fp64. The budget of `out` is the error of the plain formula in q's dtype, by torch on the CPU, whatever
    the device: cuBLAS adds up in another order on every GPU, and where a handful of large scores decides the result,
    the order makes the error half or several times as large.

    rms: for results of few numbers and cases found by a search, as `assert_within_budget` has it. There the order must
    not be luck: the budget is twice the largest error of several orders of a head's dimensions.
    """
    oracle, oracle_lse = reference.omni_attention(
        q.double(), k.double(), v.double(), mask, scale=scale, softcap=softcap, return_lse=True
    )
    orders = [torch.arange(q.size(3))]
    if rms:
        orders += [torch.randperm(q.size(3), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    host, host_mask = [x.cpu() for x in (q, k, v)], mask.to("cpu")
    peers = [
        reference.omni_attention(
            host[0][..., order], host[1][..., order], host[2], host_mask, scale=scale, softcap=softcap
        )
        for order in orders
    ]
    peer = max((peer.to(out.device) for peer in peers), key=lambda peer: rms_error(peer, oracle))
    assert_within_budget(out, oracle, peer, what="out", factor=2 if rms else 1.5, rms=rms)
    assert_lse(lse, oracle_lse, q, k, v, mask, scale, softcap)


def assert_lse(
    lse: Tensor,
    oracle_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: OmniMask,
    scale: float,
    softcap: float | None = None,
) -> None:
    """lse is fp32 whatever the dtype, and its error is that of the largest score; -inf where there is no column."""
    finite = oracle_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert bool((lse[~finite] == -torch.inf).all())
    floats = [x.float() for x in (q, k, v)]
    peer_lse = reference.omni_attention(*floats, mask, scale=scale, softcap=softcap, return_lse=True)[1]
    norms = [float(x.double().norm(dim=-1).max()) if k.numel() else 0.0 for x in (q, k)]
    score = norms[0] * norms[1] * abs(scale)
    # What PTX allows the approximate functions. ex2 is 2 units in the last place off the rounded result, 2.5 * 2^-23 of
    # it, in every weight alike at worst, and so is the row's sum. Each change of a row's bound, by a factor of 2^8 at
    # least, multiplies the sum by one more ex2: scores that spread over 2 `score` change it by 2 `score` log2(e) / 8.
    # lg2 is 2^-22 of its result off, or 2^-22: the logarithm of a sum that kernels keep within 2^8 of the number of
    # columns, and in bf16 2^32 below.
    changes = 1 + 2 * score / math.log(2) / 8
    logarithm = (32 if q.dtype == torch.bfloat16 else 8) + math.log2(max(2, k.size(2)))
    approximate = 2.5 * 2**-23 * (1 + changes) + 2**-22 * math.log(2) * logarithm
    # What softcap.cuh says of tanh: 2^-21 of its value, or absolutely in 16 bits and up to a softcap of 128.
    coarse = q.dtype != torch.float32 and softcap is not None and softcap <= 128
    capped = 0.0 if softcap is None else softcap if coarse else min(softcap, score)
    allowed = score * 2**-23 + approximate + capped * 2**-21
    assert max_error(lse, oracle_lse) <= 1.5 * max_error(peer_lse, oracle_lse) + allowed
