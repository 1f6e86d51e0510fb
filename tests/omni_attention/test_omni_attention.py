"""omni_attention on the CPU: values and gradients against fp64. The rest of the operator: test_operator.py."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from showo_ext import OmniMask, omni_attention, reference
from showo_ext._native import launch, native
from showo_ext.ops._attention_inputs import launch_arguments
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import (
    FLOAT_DTYPES,
    available_isas,
    guarded,
    inside_larger,
    poisoned,
    randn,
    rounding_band,
    use_isa,
    use_threads,
)
from tests.omni_attention.common import ONE_ROW_APART, one_row_apart, random_mask

OPS = torch.ops.showo_ext


@pytest.fixture(autouse=True, scope="module")
def poison_new_tensors():
    """Every torch.empty of the operators is full of NaN, so that an element nobody writes is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def layout(x: Tensor, name: str) -> Tensor:
    """The same values in another memory order."""
    if name == "bshd":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if name == "sliced":
        return inside_larger(x)
    if name == "expanded":
        return x[:, :1].expand(x.shape)
    return x


def run(function, inputs, mask, scale, dout, dlse, softcap=None):
    """out, lse, dq, dk, dv; gradients of sum(out dout) + sum(lse dlse) over the rows that have columns."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = function(*leaves, mask, scale=scale, softcap=softcap, return_lse=True)
    finite = lse.isfinite()
    loss = (out * dout.to(out.dtype)).sum() + (lse[finite] * dlse.to(lse.dtype)[finite]).sum()
    return [out, lse, *torch.autograd.grad(loss, leaves)]


def bands(q, k, v, mask, scale, dout, dlse, dtype, softcap=None):
    """Errors that one rounding of each term causes, from fp64 inputs: out, lse, dq, dk, dv.

    Terms are rounded to fp32, and a probability carries eps |score| besides, its exponent's rounding, and that of the
    score's sum: one after the other, D products carry sqrt(D) times the rounding of a partial sum, whose size is that
    of a random walk. Backward gets `out` in its own dtype, so sum(dout out) carries that rounding. A softcap makes
    scores and gradients smaller.
    """
    group = q.size(1) // k.size(1)
    kk, vv = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    _, lse = reference.omni_attention(q, k, v, mask, scale=scale, softcap=softcap, return_lse=True)
    capped = q @ kk.mT * scale
    if softcap is not None:
        capped = (capped / softcap).tanh() * softcap
    allowed = mask.to_dense().unsqueeze(1)
    p = (capped.sub(lse.unsqueeze(-1)).exp()).masked_fill(~allowed, 0.0)
    partial_sums = (q.square() @ kk.square().mT).sqrt()
    score = (q.abs() @ kk.abs().mT + q.size(-1) ** 0.5 * partial_sums) * abs(scale)
    score = score.masked_fill(~allowed, 0.0)
    score = torch.nn.functional.pad(score, (0, 1)).amax(-1, keepdim=True)  # also without columns
    unit, out_unit = torch.finfo(torch.float32).eps / 2, torch.finfo(dtype).eps / 2
    dp_out = (dout * (p @ vv)).abs().sum(-1, keepdim=True)
    p_error = unit * p * (1 + score)
    ds = p_error * (dout.abs() @ vv.abs().mT + dp_out + dlse.abs().unsqueeze(-1)) * abs(scale)
    ds = ds + out_unit * p * dp_out * abs(scale)

    def over_group(x):
        return x.unflatten(1, (k.size(1), group)).sum(2)

    results = [
        p_error @ vv.abs(),
        unit * (1 + score),
        ds @ kk.abs(),
        over_group(ds.mT @ q.abs()),
        over_group(p_error.mT @ dout.abs()),
    ]
    return [x.max().item() if x.numel() else 0.0 for x in results]


def check(batch, heads, kv_heads, mask, dim, dtype, *, order="bhsd", scale=None, softcap=None, seed=0):
    q = layout(randn(batch, heads, mask.q_length, dim, dtype=dtype, seed=seed), order)
    k = layout(randn(batch, kv_heads, mask.kv_length, dim, dtype=dtype, seed=seed + 1), order)
    v = layout(randn(batch, kv_heads, mask.kv_length, dim, dtype=dtype, seed=seed + 2), order)
    dout = layout(randn(*q.shape, dtype=dtype, seed=seed + 3), order)
    dlse = randn(*q.shape[:3], seed=seed + 4)
    inputs = (q, k, v)
    actual = run(omni_attention, inputs, mask, scale, dout, dlse, softcap)
    doubles = [x.double() for x in inputs]
    oracle = run(reference.omni_attention, doubles, mask, scale, dout.double(), dlse.double(), softcap)
    # Arithmetic is fp32 whatever the dtype, so the peer is the plain formula in fp32, rounded at the end.
    peer = run(reference.omni_attention, [x.float() for x in inputs], mask, scale, dout.float(), dlse, softcap)
    scale = dim**-0.5 if scale is None else scale
    allowances = bands(*doubles, mask, scale, dout.double(), dlse.double(), dtype, softcap)
    names = ("out", "lse", "dq", "dk", "dv")
    for name, a, o, p, allowance in zip(names, actual, oracle, peer, allowances, strict=True):
        expected_dtype = torch.float32 if name == "lse" else dtype
        assert (a.dtype, a.shape) == (expected_dtype, o.shape), name
        assert not a.isnan().any(), f"{name} has NaN"
        assert torch.equal(a.isinf(), o.isinf()), f"{name}: infinities elsewhere than the oracle's"
        finite = o.isfinite()
        if not finite.any():
            continue
        error = (a.double() - o)[finite].abs().max().item()
        peer_error = (p.to(expected_dtype).double() - o)[finite].abs().max().item()
        band = allowance + rounding_band(o, expected_dtype)
        assert error <= 2 * (peer_error + band), f"{name}: error {error:.3e}, torch {peer_error:.3e}, band {band:.3e}"


# ---- values and gradients --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    rows=st.one_of(st.integers(0, 5), st.integers(0, 110), st.sampled_from([47, 48, 49, 95, 96, 97])),
    columns=st.one_of(st.integers(0, 150), st.sampled_from([1, 63, 64, 65, 127, 128, 129])),
    dim=st.sampled_from([32, 64, 96, 128, 256, 8, 40, 72, 200]),
    count=st.integers(1, 8),
    dtype=st.sampled_from(FLOAT_DTYPES),
    order=st.sampled_from(["bhsd", "bshd", "sliced", "expanded"]),
    scale=st.sampled_from([None, 0.05, 1.0, -0.2]),
    softcap=st.sampled_from([None, None, 1.0, 20.0]),
    isa=st.sampled_from(available_isas()),
    threads=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@example(
    1, 1, 1, 1, 1, 64, 1, torch.float32, "bhsd", None, None, "avx2" if "avx2" in available_isas() else "baseline", 2, 0
)
def test_random_masks(
    batch, kv_heads, group, rows, columns, dim, count, dtype, order, scale, softcap, isa, threads, seed
):
    mask = random_mask(batch, rows, columns, count, seed)
    with use_isa(isa), use_threads(threads):
        check(batch, group * kv_heads, kv_heads, mask, dim, dtype, order=order, scale=scale, softcap=softcap, seed=seed)


FORMATS = {
    "t2i": OmniMask.t2i_padded([90, 120]),
    "t2i image rows against a cache": OmniMask.t2i_padded([90, 120]).rows(129),
    "mmu": OmniMask.prefix(torch.tensor([130, 131]), 180),
    "mmu_vit": OmniMask.mmu_vit(2, 200, image_tokens=120),
    "causal": OmniMask.causal(2, 130),
    "one row against a cache": OmniMask.causal(1, 1, kv_length=300),
    "full": OmniMask.full(2, 65, kv_length=128),
    "no columns": OmniMask.full(2, 5, kv_length=0),
    "packed": OmniMask.block_diagonal([[OmniMask.causal(1, 70), OmniMask.full(1, 33)], [OmniMask.causal(1, 100)]]),
}


@pytest.mark.parametrize("mask", FORMATS.values(), ids=FORMATS)
def test_formats(mask):
    for isa in available_isas():
        with use_isa(isa):
            check(mask.batch_size, 4, 2, mask, 64, torch.float32, order="bshd", seed=5)
    check(mask.batch_size, 4, 2, mask, 64, torch.bfloat16, order="bshd", seed=6)


@pytest.mark.parametrize("case", ONE_ROW_APART)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_row_of_a_tile_counts(dtype, case):
    rows = native().omni_attention_block_rows()
    check(rows, 1, 1, one_row_apart(rows, case), 32, dtype)


def test_forbidden_columns_do_not_matter():
    mask = random_mask(2, 100, 140, 2, seed=3)
    q, k, v = (randn(2, 2, n, 64, seed=s) for s, n in enumerate((100, 140, 140)))
    unseen = ~mask.to_dense().any(1)  # [B, S_kv]
    unseen[:, :10] = True
    mask = OmniMask.from_intervals(mask.intervals.clamp(min=10), 140)
    poison = torch.where(unseen[:, None, :, None], torch.tensor(1e30), torch.tensor(0.0))
    assert torch.equal(omni_attention(q, k, v, mask), omni_attention(q, k + poison, v - poison, mask))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("rows", [3, 50])  # few rows have a kernel of their own
def test_columns_that_do_not_exist_are_not_read(rows, dtype):
    """A plan keeps its mask's intervals, and who writes into these makes no kernel read beyond k and v."""
    intervals = torch.tensor([0, 70], dtype=torch.int32).repeat(1, rows, 1, 1)
    intervals[:, 0] = 0  # of a block that is not seen as a whole, the kernels look at the intervals
    q = randn(1, 2, rows, 32, dtype=dtype, seed=0)
    k, v = (randn(1, 2, 200, 32, dtype=dtype, seed=seed)[:, :, :70] for seed in (1, 2))  # more memory lies behind
    plan = make_plan(OmniMask(intervals, 70), 0)
    expected = OPS.omni_attention_forward(q, k, v, *plan, 0.2)
    wide = torch.where(intervals == 70, 200, intervals)
    wide[:, 1:, :, 0] = -5
    found = OPS.omni_attention_forward(q, k, v, *plan._replace(intervals=wide), 0.2)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_rows_without_columns_pass_no_gradient():
    intervals = torch.zeros(1, 50, 1, 2, dtype=torch.int32)
    intervals[0, ::2, 0, 1] = 7
    q, k, v = (randn(1, 2, 50, 32, seed=s).requires_grad_() for s in range(3))
    out, lse = omni_attention(q, k, v, OmniMask(intervals, 50), return_lse=True)
    assert bool((out[:, :, 1::2] == 0).all())
    assert bool((lse[:, :, 1::2] == -torch.inf).all())
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert bool((dq[:, :, 1::2] == 0).all())
    assert not dq.isnan().any()


def test_one_column_rows_copy_their_value():
    intervals = torch.arange(40, dtype=torch.int32).flip(0).reshape(1, 40, 1, 1) + torch.tensor(
        [0, 1], dtype=torch.int32
    )
    q, k, v = (randn(1, 1, 40, 64, seed=s).requires_grad_() for s in range(3))
    out = omni_attention(q, k, v, OmniMask(intervals, 40))
    assert torch.equal(out, v.flip(2))
    dq, dk = torch.autograd.grad((out * randn(1, 1, 40, 64, seed=9)).sum(), (q, k))
    assert bool((dq == 0).all())
    assert bool((dk == 0).all())


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v = (randn(1, 2, 60, 64, seed=s) * f for s, f in enumerate((100.0, 100.0, 1.0)))
    mask = OmniMask.causal(1, 60)
    expected = reference.omni_attention(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(omni_attention(q, k, v, mask).double(), expected, rtol=1e-3, atol=1e-3)


def test_nan_stays_in_its_row():
    q, k, v = (randn(1, 1, 60, 32, seed=s) for s in range(3))
    q[0, 0, 20, 3] = float("nan")
    out, lse = omni_attention(q, k, v, OmniMask.causal(1, 60), return_lse=True)
    hit = torch.zeros(60, dtype=torch.bool).index_fill(0, torch.tensor([20]), True)
    assert torch.equal(out[0, 0].isnan().all(-1), hit)
    assert torch.equal(out[0, 0].isnan().any(-1), hit)
    assert torch.equal(lse[0, 0].isnan(), hit)


def test_same_bits_for_any_number_of_threads():
    mask = OmniMask.t2i_padded([3, 60], text_length=70, image_length=66)
    inputs = [randn(2, h, 136, 64, seed=h) for h in (6, 2, 2)]
    dout, dlse = randn(2, 6, 136, 64, seed=7), randn(2, 6, 136, seed=8)
    results = []
    for threads in (1, 2, 3, 2):
        with use_threads(threads):
            results.append(run(omni_attention, inputs, mask, None, dout, dlse))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_result_keeps_the_memory_order_of_q():
    q = randn(2, 9, 4, 32).transpose(1, 2)
    out = omni_attention(q, q, q, OmniMask.causal(2, 9))
    assert out.stride() == q.stride()
    fused = randn(2, 9, 3, 4, 32)  # one projection for q, k and v
    q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
    out = omni_attention(q, k, v, OmniMask.causal(2, 9))
    assert out.transpose(1, 2).is_contiguous()


def test_a_mask_of_batch_one_serves_all():
    q = randn(3, 2, 20, 32)
    mask = random_mask(1, 20, 20, 3, seed=1)
    assert torch.equal(omni_attention(q, q, q, mask), omni_attention(q, q, q, OmniMask.cat([mask] * 3)))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_nothing_around_the_results_is_written(isa, dtype):
    q, k, v = (randn(1, 2, n, 96, dtype=dtype, seed=n) for n in (50, 70, 70))
    mask = random_mask(1, 50, 70, 3, seed=4)
    out, lse = guarded(poisoned(q.shape, dtype=dtype)), guarded(poisoned((1, 2, 50)))
    common = {
        "out": out.tensor,
        "lse": lse.tensor,
        "out_strides": out.tensor.stride()[:3],
    }
    summands = native().omni_attention_backward_summands(batch=1, heads=2, kv_heads=2, q_length=50)
    dq, dk, dv = (guarded(poisoned(shape)) for shape in (q.shape, (summands, *k.shape), (summands, *v.shape)))
    with use_isa(isa), use_threads(2):
        common |= launch_arguments(q, k, v, make_plan(mask, 0), 0.1)
        launch("omni_attention_forward", q, **common)
        launch(
            "omni_attention_backward",
            q,
            **common,
            dout=q,
            dout_strides=q.stride()[:3],
            dlse=None,
            dq=dq.tensor,
            dk=dk.tensor,
            dv=dv.tensor,
            summands=summands,
        )
    for written in (out, lse, dq, dk, dv):
        written.check()
        assert not written.tensor.isnan().any()


def example_omni_attention(package, dtype):
    """Many rows, and the few rows against a long kv that have kernels of their own."""
    tensors = []
    for rows, columns in ((70, 70), (3, 600)):
        mask = OmniMask.causal(1, rows, kv_length=columns)
        leaves = [randn(1, 2, n, 32, dtype=dtype, seed=n).requires_grad_() for n in (rows, columns, columns)]
        arguments = {} if package is reference else {"deterministic": True}
        out, lse = package.omni_attention(*leaves, mask, return_lse=True, **arguments)
        tensors += [out, lse, *torch.autograd.grad(out.float().square().sum() + lse.sum(), leaves)]
    return tensors
