"""What takes no part in attention may hold anything: columns that no row of the batch entry sees, and rows without
columns. Results are those with zeros there, bit for bit.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import FLOAT_DTYPES, available_isas, randint, randn, use_isa

NAMES = ("out", "lse", "dq", "dk", "dv")


def mask_with_unseen(batch, rows, columns, seed):
    """Three runs of columns are there to be seen. Of 64 rows, all see all of them, or each sees parts, or nothing."""
    runs = randint(0, columns + 1, (batch, 1, 3, 2), seed=seed).sort(-1).values
    inner = randint(0, columns + 1, (batch, rows, 3, 2), seed=seed + 1).sort(-1).values
    inner = torch.minimum(torch.maximum(inner, runs[..., :1]), runs[..., 1:])
    whole = randint(0, 2, (batch, rows // 64 + 1), seed=seed + 2).repeat_interleave(64, 1)[:, :rows] == 0
    intervals = torch.where(whole[..., None, None], runs, inner)
    intervals[~whole & (randint(0, 4, (batch, rows), seed=seed + 3) == 0)] = 0
    return OmniMask(intervals.int(), columns)


def run(function, inputs, mask, deterministic):
    """out, lse, dq, dk, dv. inputs: q, k, v, dout, dlse."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    results = function(*leaves, mask, scale=0.2, return_lse=True, deterministic=deterministic)
    return [x.detach() for x in results] + list(torch.autograd.grad(results, leaves, inputs[3:]))


def run_backward(inputs, saved, mask, deterministic):
    """dq, dk, dv of the backward kernels alone. saved: out and lse."""
    q, k, v, dout, dlse = inputs
    return torch.ops.showo_ext.omni_attention_backward(
        dout, dlse, q, k, v, *make_plan(mask, 0), *saved, 0.2, deterministic
    )


def fill(inputs, mask, value):
    """The inputs with `value` wherever nothing takes part."""
    dense = mask.to_dense()
    rows, columns = ~dense.any(2).unsqueeze(1), ~dense.any(1).unsqueeze(1)  # [B, 1, S_q], [B, 1, S_kv]
    where = (rows, columns, columns, rows, rows)
    return [
        x.masked_fill(w if x.dim() == 3 else w.unsqueeze(-1), value) for x, w in zip(inputs, where, strict=True)
    ], where


def operands(mask, dim, dtype, heads=2, kv_heads=1, seed=0):
    """q, k, v, dout, dlse."""
    batch, rows, columns = mask.shape
    shapes = ((heads, rows, dim), (kv_heads, columns, dim), (kv_heads, columns, dim), (heads, rows, dim))
    inputs = [randn(batch, *s, dtype=dtype, seed=seed + i, device=mask.device) for i, s in enumerate(shapes)]
    return [*inputs, randn(batch, heads, rows, seed=seed + 4, device=mask.device).to(torch.float32)]


def check(function, mask, dim, dtype, heads=2, deterministic=True, seed=0):
    inputs = operands(mask, dim, dtype, heads, seed=seed)
    zeros, where = fill(inputs, mask, 0.0)
    expected = run(function, zeros, mask, deterministic)
    assert all(x.isfinite().all() for x in expected[2:])
    for value in (float("nan"), float("inf"), -float("inf")):
        actual = run(function, fill(inputs, mask, value)[0], mask, deterministic)
        for name, a, e in zip(NAMES, actual, expected, strict=True):
            if name == "dq" and not deterministic:
                torch.testing.assert_close(a, e, rtol=0.02, atol=0.02)
            else:
                assert torch.equal(a, e), (name, value)
    check_zeros(expected[2:], where)


def check_zeros(gradients, where):
    for name, gradient, nothing in zip(NAMES[2:], gradients, where[:3], strict=True):
        assert bool((gradient == 0).masked_select(nothing.unsqueeze(-1)).all()), name


def check_backward(mask, dim, dtype, heads=2, deterministic=True, seed=0):
    """The backward kernels alone; `out` of a row without columns may hold anything too."""
    inputs = operands(mask, dim, dtype, heads, seed=seed)
    zeros, where = fill(inputs, mask, 0.0)
    out, lse = reference.omni_attention(*zeros[:3], mask, scale=0.2, return_lse=True)
    lse = lse.float()
    expected = run_backward(zeros, (out, lse), mask, deterministic)
    assert all(x.isfinite().all() for x in expected)
    for value in (float("nan"), float("inf"), -float("inf")):
        saved = out.masked_fill(where[0].unsqueeze(-1), value), lse
        actual = run_backward(fill(inputs, mask, value)[0], saved, mask, deterministic)
        for name, a, e in zip(NAMES[2:], actual, expected, strict=True):
            if name == "dq" and not deterministic:
                torch.testing.assert_close(a, e, rtol=0.02, atol=0.02)
            else:
                assert torch.equal(a, e), (name, value)
    check_zeros(expected, where)


SWEEP = given(
    batch=st.integers(1, 2),
    group=st.integers(1, 2),
    rows=st.one_of(st.integers(1, 150), st.sampled_from([1, 16, 64, 65, 128])),
    columns=st.one_of(st.integers(1, 200), st.sampled_from([1, 63, 64, 65, 128])),
    dim=st.sampled_from([32, 64, 96, 128]),
    dtype=st.sampled_from(FLOAT_DTYPES),
    deterministic=st.booleans(),
    seed=st.integers(0, 999),
)


def sweep(function, examples):
    def example(batch, group, rows, columns, dim, dtype, deterministic, seed):
        mask = mask_with_unseen(batch, rows, columns, seed)
        check(function, mask, dim, dtype, heads=group, deterministic=deterministic, seed=seed)

    settings(deadline=None, max_examples=examples)(SWEEP(example))()


def test_reference():
    sweep(reference.omni_attention, 15)


@pytest.mark.parametrize("isa", available_isas())
def test_cpu(isa):
    with use_isa(isa):
        sweep(omni_attention, 15)


def test_cuda(emulated):
    sweep(omni_attention, 8)


def mask_with_holes(rows, seed, device):
    """Columns that no row sees, between those that some do, in blocks of all states."""
    intervals = mask_with_unseen(1, rows, 150, seed).intervals
    intervals[:, 0] = torch.tensor([[0, 7], [9, 40], [140, 149]], dtype=torch.int32)
    return OmniMask(intervals.to(device), 150)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_every_backward_kernel(device, dtype, dim):
    for rows, deterministic in ((100, True), (70, False)):
        check_backward(mask_with_holes(rows, dim + rows, device), dim, dtype, deterministic=deterministic)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_every_forward_kernel(device, dtype, dim):
    mask = mask_with_holes(150, dim, device)
    inputs = operands(mask, dim, dtype)
    for tile_rows in [64] if dtype == torch.float32 else [64, 128]:
        plan = make_plan(mask, tile_rows)
        expected = torch.ops.showo_ext.omni_attention_forward(*fill(inputs, mask, 0.0)[0][:3], *plan, -0.2)
        assert all(x.isnan().sum() == 0 for x in expected)
        for value in (float("nan"), float("inf"), -float("inf")):
            actual = torch.ops.showo_ext.omni_attention_forward(*fill(inputs, mask, value)[0][:3], *plan, -0.2)
            assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True)), (tile_rows, value)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_every_decode_kernel(device, dtype, dim):
    """Of five query rows and two heads a kv head, so that no 16 packed rows are all query rows of one head."""
    mask = mask_with_holes(5, dim, device)
    inputs = operands(mask, dim, dtype, heads=4, kv_heads=2)
    expected = omni_attention(*fill(inputs, mask, 0.0)[0][:3], mask, return_lse=True)
    for value in (float("nan"), float("inf"), -float("inf")):
        actual = omni_attention(*fill(inputs, mask, value)[0][:3], mask, return_lse=True)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True)), value


def check_a_cache_that_is_not_full(dtype, device):
    """One row against 64 slots, of which those from 60 on are not written yet."""
    mask = OmniMask(torch.tensor([0, 60], dtype=torch.int32, device=device).view(1, 1, 1, 2), 64)
    q, k, v = (randn(1, 2, n, 64, dtype=dtype, seed=i, device=device) for i, n in enumerate((1, 64, 64)))
    expected = omni_attention(q, k[:, :, :60], v[:, :, :60], mask.columns(0, 60))
    k[:, :, 60:], v[:, :, 60:] = float("nan"), float("nan")
    assert torch.equal(omni_attention(q, k, v, mask), expected)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_a_cache_that_is_not_full(dtype):
    check_a_cache_that_is_not_full(dtype, "cpu")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_a_cache_that_is_not_full_on_cuda(device, dtype):
    check_a_cache_that_is_not_full(dtype, device)
