"""omni_attention with at most 16 query rows on CUDA: the split-KV kernels, on a GPU if there is one, else, where it is
built, on the PTX emulator.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.ops import _decode
from showo_ext.ops._mask_plan import MaskPlan, make_plan
from showo_ext.testing import (
    ENOUGH_ROWS,
    FLOAT_DTYPES,
    assert_compiles,
    assert_within_budget,
    inside_larger,
    randint,
    randn,
)
from tests.omni_attention.common import ONE_ROW_APART, SOFTCAPS, assert_attention, one_row_apart, operands
from tests.ptx.emulated import emulated_device, module_path

OPS = torch.ops.showo_ext
BF16 = torch.bfloat16
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])


def decode(q, k, v, mask, scale=0.125, splits=None, softcap=None):
    """out and lse with a number of splits of one's choice."""
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), torch.empty(q.shape[:3], device=q.device)
    plan = MaskPlan(mask.intervals.contiguous(), None, None, None, 0)
    _decode.decode(q, k, v, plan, scale, out, lse, softcap=softcap or 0.0, num_splits=splits)
    return out, lse


def check(q, k, v, mask, *, scale=0.125, splits=None, softcap=None, rms=False):
    out, lse = decode(q, k, v, mask, scale, splits, softcap)
    assert_attention(out, lse, q, k, v, mask, scale, softcap=softcap, rms=rms)
    return out, lse


def random_mask(batch, rows, columns, count, seed, device="cpu"):
    """Unsorted, overlapping intervals, long and short; some rows empty, some with one column, some with all."""
    ends = randint(0, columns + 1, (batch, rows, count, 2), seed=seed).sort(-1).values.int()
    short = randint(0, 2, (batch, rows, count), seed=seed + 3) == 0
    ends[..., 1] = torch.where(short, torch.minimum(ends[..., 1], ends[..., 0] + 20), ends[..., 1])
    kind = randint(0, 8, (batch, rows), seed=seed + 1)
    ends[kind == 0] = 0
    one = randint(0, max(columns, 1), (batch, rows, 1, 1), seed=seed + 2).int()
    if columns:
        ends = torch.where((kind == 1)[..., None, None], torch.cat([one, one + 1], -1), ends)
    ends[kind == 2] = torch.tensor([0, columns], dtype=torch.int32)
    return OmniMask(ends.contiguous().to(device), columns)


# ---- values ----------------------------------------------------------------------------------------------------------


@dtypes
@dims
@pytest.mark.parametrize("splits", [1, 3])
def test_every_instantiation(device, dtype, dim, splits):
    mask = random_mask(2, 5, 300, 2, seed=dim, device=device)
    check(*operands(mask, dim, dtype, heads=6, kv_heads=2), mask, splits=splits)


@pytest.mark.parametrize("columns", [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 2500])
def test_edges(device, columns):
    for rows, group in (1, 8), (7, 4), (16, 1):
        mask = OmniMask.full(1, rows, kv_length=columns, device=device)
        if columns >= rows:
            mask = OmniMask.causal(1, rows, kv_length=columns, device=device)
        check(*operands(mask, 64, BF16, heads=group, seed=rows), mask)
        check(*operands(mask, 32, torch.float32, heads=group, seed=rows), mask, rms=True)


@dtypes
@pytest.mark.parametrize("case", ONE_ROW_APART)
def test_every_row_of_a_tile_counts(device, dtype, case):
    mask = one_row_apart(16, case).to(device)
    check(*operands(mask, 32, dtype), mask)


@dtypes
@pytest.mark.parametrize("scale", [-0.2, 0.0])
def test_scales_that_are_not_positive(device, dtype, scale):
    mask = OmniMask.causal(1, 5, kv_length=70, device=device)
    check(*operands(mask, 64, dtype, heads=4), mask, scale=scale)


SWEEP = given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    rows=st.integers(1, 16),
    columns=st.one_of(st.integers(0, 500), st.sampled_from([1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 1025])),
    dim=st.sampled_from([32, 64, 96, 128]),
    count=st.integers(1, 8),
    dtype=st.sampled_from(FLOAT_DTYPES),
    scale=st.sampled_from([0.125, 1.0, -0.2, 0.0]),
    softcap=st.sampled_from(SOFTCAPS),
    splits=st.one_of(st.none(), st.integers(1, 40)),
    order=st.sampled_from(["bhsd", "bshd", "sliced", "expanded", "cache"]),
    seed=st.integers(0, 999),
)


def check_random(batch, kv_heads, group, rows, columns, dim, count, dtype, scale, softcap, splits, order, seed):
    batch = max(batch, ENOUGH_ROWS // (kv_heads * group * rows))
    mask = random_mask(batch, rows, columns, count, seed)
    q, k, v = operands(mask, dim, dtype, heads=kv_heads * group, kv_heads=kv_heads, seed=seed)
    if order == "bshd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif order == "sliced":
        q, k, v = (inside_larger(x) for x in (q, k, v))
    elif order == "expanded":
        k, v = (x[:, :1].expand(-1, kv_heads, -1, -1) for x in (k, v))
    elif order == "cache":  # the first columns of a longer buffer; the rest is NaN
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, 9), value=float("nan"))[:, :, :columns] for x in (k, v))
    check(q, k, v, mask, scale=scale, splits=splits, softcap=softcap, rms=True)


def test_random(emulated):
    settings(deadline=None, max_examples=25)(SWEEP(check_random))()


@pytest.mark.kernels
def test_many_random(emulated):
    settings(deadline=None, max_examples=1500)(SWEEP(check_random))()


@dtypes
@pytest.mark.parametrize("splits", [1, 2, 5, 33, 128])
def test_any_number_of_splits(device, dtype, splits):
    """More than there are blocks, too: their shares are empty and are not read."""
    mask = OmniMask.causal(1, 3, kv_length=1000, device=device)
    check(*operands(mask, 64, dtype, heads=2), mask, splits=splits)


@dtypes
def test_splits_without_columns(device, dtype):
    """All rows look at one short run of columns: most splits see nothing, the combine kernel reads none of them."""
    intervals = torch.tensor([[700, 730], [710, 720], [0, 0], [729, 730]], dtype=torch.int32, device=device)
    mask = OmniMask(intervals.view(1, 4, 1, 2), 1000)
    out, lse = check(*operands(mask, 64, dtype), mask, splits=7)
    assert bool((out[:, :, 2] == 0).all())
    assert bool((lse[:, :, 2] == -torch.inf).all())


@dtypes
@pytest.mark.parametrize("columns", [0, 600])
@pytest.mark.parametrize("splits", [1, 4])
def test_no_row_sees_anything(device, dtype, columns, splits):
    mask = OmniMask(torch.zeros(2, 3, 2, 2, dtype=torch.int32, device=device), columns)
    out, lse = decode(*operands(mask, 32, dtype, heads=2), mask, splits=splits)
    assert bool((out == 0).all())
    assert bool((lse == -torch.inf).all())


@dtypes
@pytest.mark.parametrize("splits", [1, 2])
def test_intervals_out_of_range_are_cut(device, dtype, splits):
    wild = torch.tensor([[-(2**31), 2**31 - 1], [-5, 3], [60, 90], [7, 2], [80, 100], [-9, -3]], dtype=torch.int32)
    intervals = wild.view(1, 6, 1, 2).to(device)
    mask, cut = OmniMask(intervals, 70), OmniMask(intervals.clamp(0, 70), 70)
    inputs = operands(mask, 64, dtype)
    assert torch.equal(decode(*inputs, mask, splits=splits)[0], check(*inputs, cut, splits=splits)[0])


@dtypes
@pytest.mark.parametrize("splits", [1, 3])
def test_nan_and_infinity_stay_in_their_row(device, dtype, splits):
    mask = OmniMask.causal(1, 6, kv_length=300, device=device)
    q, k, v = operands(mask, 64, dtype)
    q[0, 0, 2, 3], q[0, 0, 4, 5] = float("nan"), float("inf")
    out, lse = decode(q, k, v, mask, splits=splits)
    hit = torch.tensor([0, 0, 1, 0, 1, 0], dtype=torch.bool, device=device)
    assert torch.equal(out[0, 0].isnan().all(-1), hit)
    assert torch.equal(out[0, 0].isnan().any(-1), hit)
    assert torch.equal(lse[0, 0].isnan(), hit)


@dtypes
@pytest.mark.parametrize("splits", [1, 3])
def test_scores_of_minus_infinity_alone_are_not_an_empty_row(device, dtype, splits):
    """0 / 0, as torch has it; a row without columns is zero."""
    mask = OmniMask(torch.tensor([[0, 200], [5, 5]], dtype=torch.int32, device=device).view(1, 2, 1, 2), 200)
    q, k, v = operands(mask, 64, dtype)
    q[:], k[:] = 0.0, 1.0
    q[..., 0] = -float("inf")
    out, lse = decode(q, k, v, mask, splits=splits)
    assert bool(out[:, :, 0].isnan().all())
    assert bool(lse[:, :, 0].isnan().all())
    assert bool((out[:, :, 1] == 0).all())


@dtypes
@pytest.mark.parametrize("splits", [1, 4])
def test_maxima_that_rise_and_fall(device, dtype, splits):
    """Scores that grow by far more than the rescaling threshold from block to block, and shrink again."""
    mask = OmniMask.full(1, 5, kv_length=520, device=device)
    q, k, v = operands(mask, 64, dtype, heads=13)
    growth = torch.linspace(0.0, 6.0, 520, device=device).view(1, 1, -1, 1)
    for factor in (growth, growth.flip(2)):
        check(q, (k * factor).to(dtype), v, mask, scale=1.0, splits=splits, rms=True)


@dtypes
@dims
def test_agrees_with_the_large_kernel(device, dtype, dim):
    """The other kernel is the peer: neither is less exact than 1.5 times the other."""
    mask = OmniMask.prefix(torch.tensor([150, 90]), 330).rows(200, 213).to(device)
    mask = OmniMask(mask.intervals.clone(), 330)
    q, k, v = operands(mask, dim, dtype, heads=4, kv_heads=2)
    large = OPS.omni_attention_forward(q, k, v, *make_plan(mask, 64), 0.1)
    small = decode(q, k, v, mask, 0.1, splits=2)
    oracle = reference.omni_attention(*(x.double() for x in (q, k, v)), mask, scale=0.1, return_lse=True)
    assert_within_budget(small[0], oracle[0], large[0])
    torch.testing.assert_close(small[1], large[1], rtol=2e-6, atol=2e-6)


@dtypes
def test_same_bits_every_time(device, dtype):
    mask = random_mask(2, 9, 700, 3, seed=5, device=device)
    q, k, v = operands(mask, 64, dtype, heads=4, kv_heads=2)
    first = decode(q, k, v, mask, splits=5)
    for _ in range(3):
        again = decode(q, k, v, mask, splits=5)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # Nor does a sample depend on its batch.
    alone = decode(q[1:], k[1:], v[1:], mask.samples(1, 2), splits=5)
    assert all(torch.equal(a[1:], b) for a, b in zip(first, alone, strict=True))


def test_number_of_splits():
    """Two thread blocks for each of 108 multiprocessors, no share below 256 columns, 128 at most."""
    assert [_decode.splits(1, 32, 32, 1, n) for n in (0, 1, 387, 511, 512, 1155, 2500)] == [1, 1, 1, 1, 2, 4, 6]
    assert _decode.splits(2, 32, 32, 1, 2500) == 3
    assert _decode.splits(64, 32, 32, 1, 2500) == 1
    assert _decode.splits(1, 32, 4, 1, 131072) == 54
    assert _decode.splits(1, 32, 4, 16, 131072) == 27  # 128 packed rows are two thread blocks
    assert _decode.splits(1, 1, 1, 1, 10**6) == 128


# ---- the operator ----------------------------------------------------------------------------------------------------


def kernels(emulated):
    return ["combine" if "combine" in r.kernel else r.kernel.split("omni_")[1][:6] for r in emulated.records()]


@pytest.mark.parametrize(("columns", "launches"), [(300, ["decode"]), (1000, ["decode", "combine"])])
@dtypes
def test_one_or_two_launches_and_nothing_else(emulated, dtype, columns, launches):
    mask = OmniMask.causal(2, 2, kv_length=columns)
    q, k, v = operands(mask, 64, dtype, heads=4, kv_heads=2)
    out, lse = omni_attention(q, k, v, mask, scale=0.1, return_lse=True)
    assert kernels(emulated) == launches
    assert not any(name.startswith(("_block", "_tile")) for name in vars(mask))
    expected = decode(q, k, v, mask, 0.1)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    assert all(t["never_written"] == 0 for t in emulated.records()[-1].tensors)


@pytest.mark.parametrize("rows", [16, 17])
def test_sixteen_rows_are_the_most(emulated, rows):
    mask = OmniMask.causal(1, rows, kv_length=100)
    omni_attention(*operands(mask, 32, BF16), mask)
    assert ("decode" in kernels(emulated)) == (rows == 16)


@dtypes
@pytest.mark.parametrize("layout", ["bshd", "fused", "misaligned", "expanded"])
def test_layouts(device, dtype, layout):
    mask = OmniMask(torch.tensor([[3, 40], [0, 16], [9, 90]], dtype=torch.int32, device=device).view(1, 3, 1, 2), 90)
    q, k, v = operands(mask, 64, dtype, heads=2, kv_heads=2)
    expected = omni_attention(q, k, v, mask)
    if layout == "bshd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        assert omni_attention(q, k, v, mask).stride() == q.stride()
    elif layout == "fused":
        k, v = torch.stack([k, v], 3).transpose(1, 2).contiguous().transpose(1, 2).unbind(3)
    elif layout == "misaligned":
        q, k, v = (inside_larger(x) for x in (q, k, v))
    else:
        k, v = (x[:, :1].expand(-1, 2, -1, -1) for x in (k, v))
        expected = omni_attention(q, k.contiguous(), v.contiguous(), mask)
    assert torch.equal(omni_attention(q, k, v, mask), expected)


def test_a_mask_of_batch_one_serves_all(device):
    mask = random_mask(1, 4, 90, 3, seed=1, device=device)
    q, k, v = (randn(3, 2, n, 64, dtype=BF16, seed=n, device=device) for n in (4, 90, 90))
    assert torch.equal(omni_attention(q, k, v, mask), omni_attention(q, k, v, OmniMask.cat([mask] * 3)))


@dtypes
@pytest.mark.parametrize("deterministic", [False, True])
def test_backward(device, dtype, deterministic):
    mask = random_mask(2, 6, 600, 2, seed=11, device=device)
    leaves = [x.requires_grad_() for x in operands(mask, 64, dtype, heads=4, kv_heads=2)]
    dout = randn(2, 4, 6, 64, dtype=dtype, seed=9, device=device)
    out = omni_attention(*leaves, mask, deterministic=deterministic)
    actual = torch.autograd.grad(out, leaves, dout)
    expected = []
    for wide in (torch.float64, dtype):
        inputs = [x.detach().to(wide).requires_grad_() for x in leaves]
        expected.append(torch.autograd.grad(reference.omni_attention(*inputs, mask), inputs, dout.to(wide)))
    # In fp32 the probabilities are made again from an lse that is rounded to fp32: an error which torch, who keeps
    # them, does not have, of the size of those that it has.
    factor = 2.0 if dtype == torch.float32 else 1.5
    for name, a, o, p in zip(("dq", "dk", "dv"), actual, *expected, strict=True):
        assert_within_budget(a, o, p, what=name, factor=factor, rms=True)


@pytest.fixture
def plainly_emulated():
    """The emulated device without its torch.empty, whose guard zones are in the way of opcheck and of tracing."""
    if module_path() is None:
        pytest.skip("the PTX emulator is not built; `make emulator` builds it")
    with emulated_device(guarded=False) as device:
        yield device


@dtypes
def test_opcheck(plainly_emulated, dtype):
    mask = random_mask(1, 3, 520, 2, seed=2)
    q, k, v = (x.requires_grad_() for x in operands(mask, 32, dtype, heads=2))
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS.omni_attention_forward.default, (q, k, v, *make_plan(mask, 0), 0.2), test_utils=cheap)


def test_compiles(plainly_emulated):
    mask = random_mask(1, 3, 520, 2, seed=2)
    assert_compiles(lambda *x: omni_attention(*x, mask.rows(0, 3), scale=0.3), *operands(mask, 32, BF16, heads=2))
