"""omni_attention: values and gradients against fp64, torch integration, bad input."""

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
    assert_compiles,
    available_isas,
    guarded,
    inside_larger,
    poisoned,
    randint,
    randn,
    rounding_band,
    use_isa,
    use_threads,
)
from tests.omni_attention.common import ONE_ROW_APART, one_row_apart

OPS = torch.ops.showo_ext


@pytest.fixture(autouse=True, scope="module")
def poison_new_tensors():
    """Every torch.empty of the operators is full of NaN, so that an element nobody writes is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def random_mask(batch, rows, columns, count, seed):
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


# ---- torch -----------------------------------------------------------------------------------------------------------


def operands(dtype=torch.float32, requires_grad=True):
    q, k, v = (randn(2, h, n, 32, dtype=dtype, seed=n) for h, n in ((4, 20), (2, 30), (2, 30)))
    return [x.requires_grad_(requires_grad) for x in (q, k, v)], random_mask(2, 20, 30, 2, seed=2)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_opcheck(dtype):
    (q, k, v), mask = operands(dtype)
    if dtype != torch.float32:
        cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(OPS.omni_attention_forward.default, (q, k, v, *make_plan(mask, 0), 0.2), test_utils=cheap)
        return
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(OPS.omni_attention_forward.default, (*strided, *make_plan(mask, 0), 0.2))
    with torch.no_grad():
        out, lse = OPS.omni_attention_forward(q, k, v, *make_plan(mask, 0), 0.2)
    q, k, v = (x.detach() for x in (q, k, v))
    for dlse in (None, torch.ones_like(lse)):
        arguments = (torch.ones_like(out), dlse, q, k, v, *make_plan(mask, 0), out, lse, 0.2)
        torch.library.opcheck(OPS.omni_attention_backward.default, arguments)


def test_compiles():
    (q, k, v), mask = operands()

    def loss(q, k, v, mask):
        out, lse = omni_attention(q, k, v, mask, return_lse=True)
        return out.square().sum() + lse.masked_fill(lse.isinf(), 0.0).sum()

    def forward(q, k, v, mask):
        return omni_attention(q, k, v, mask.rows(0, 20), scale=0.3)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(q, k, v, mask), (q, k, v))
    for actual, gradient in zip(torch.autograd.grad(compiled(q, k, v, mask), (q, k, v)), expected, strict=True):
        assert torch.equal(actual, gradient)
    assert_compiles(forward, *(x.detach() for x in (q, k, v)), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_inputs(dtype):
    (q, k, v), mask = operands()
    with torch.autocast("cpu", dtype=dtype):
        out = omni_attention(q, k.to(dtype), v, mask)
    assert out.dtype == dtype
    assert torch.equal(out, omni_attention(q.to(dtype), k.to(dtype), v.to(dtype), mask))
    (dq,) = torch.autograd.grad(out.float().sum(), q)
    assert dq.dtype == torch.float32

    def step(q, k, v):
        with torch.autocast("cpu", dtype=dtype):
            return omni_attention(q, k, v, mask)

    assert_compiles(step, q, k, v)


def test_no_second_derivative():
    (q, k, v), mask = operands()
    (dq,) = torch.autograd.grad(omni_attention(q, k, v, mask).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dq.sum().backward()


def test_gradient_of_lse_alone():
    (q, k, v), mask = operands()
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
    grads = []
    for function, inputs in ((omni_attention, (q, k, v)), (reference.omni_attention, (q64, k64, v64))):
        lse = function(*inputs, mask, return_lse=True)[1]
        grads.append(torch.autograd.grad(lse[lse.isfinite()].sum(), inputs[:2]))
    for a, o in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), o, rtol=1e-5, atol=1e-6)


def test_meta_tensors_give_shapes():
    q, k = torch.empty(2, 4, 10, 64, device="meta"), torch.empty(2, 2, 12, 64, device="meta")
    out, lse = omni_attention(q, k, k, OmniMask.causal(2, 10, kv_length=12, device="meta"), return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (2, 4, 10)
    assert out.device.type == "meta"


@pytest.mark.parametrize("shape", [(0, 2, 5, 64), (2, 0, 5, 64), (2, 2, 0, 64)])
def test_empty_tensors(shape):
    q = torch.zeros(shape, requires_grad=True)
    k = torch.zeros(shape[0], shape[1], 7, 64, requires_grad=True)
    out, lse = omni_attention(q, k, k, OmniMask.full(shape[0], shape[2], kv_length=7), return_lse=True)
    assert out.shape == shape
    assert lse.shape == shape[:3]
    dq, dk = torch.autograd.grad(out.sum(), (q, k))
    assert dq.shape == shape
    assert bool((dk == 0).all())


# ---- bad input -------------------------------------------------------------------------------------------------------

GOOD = {"q": (2, 4, 10, 64), "k": (2, 2, 12, 64), "v": (2, 2, 12, 64)}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"q": torch.zeros(2, 4, 10, 64, dtype=torch.float64)}, TypeError, "q has dtype float64, expected float32"),
        ({"k": torch.zeros(2, 2, 12, 64, dtype=torch.int64)}, TypeError, "k has dtype int64, expected float32"),
        ({"v": torch.zeros(2, 2, 12, 64, dtype=torch.bfloat16)}, TypeError, "v has dtype bfloat16, expected"),
        ({"q": [1.0]}, TypeError, "q has type list, expected a torch.Tensor"),
        ({"q": torch.zeros(4, 10, 64)}, ValueError, r"q has shape \[4, 10, 64\], expected \[B, heads"),
        ({"k": torch.zeros(2, 2, 12, 64, device="meta")}, ValueError, "k is on meta, expected cpu, the device of q"),
        ({"k": torch.zeros(2, 2, 64, 12).transpose(2, 3)}, ValueError, "k has strides .*, expected a contiguous"),
        ({"q": torch.zeros(2, 4, 10, 44)}, ValueError, "q has a head_dim of 44, expected a multiple of 8 up to 256"),
        ({"q": torch.zeros(2, 4, 10, 264)}, ValueError, "q has a head_dim of 264, expected a multiple of 8 up to 256"),
        ({"q": torch.zeros(2, 4, 10, 48)}, ValueError, r"k has shape .*, expected \[2, heads, length, 48\]"),
        ({"k": torch.zeros(1, 2, 12, 64)}, ValueError, r"k has shape .*, expected \[2, heads, length, 64\]"),
        ({"k": torch.zeros(2, 2, 12, 32)}, ValueError, r"k has shape .*, expected \[2, heads, length, 64\]"),
        ({"v": torch.zeros(2, 2, 11, 64)}, ValueError, "v has shape .*, the shape of k"),
        ({"k": torch.zeros(2, 3, 12, 64), "v": torch.zeros(2, 3, 12, 64)}, ValueError, "expected a divisor of q's 4"),
        ({"k": torch.zeros(2, 0, 12, 64), "v": torch.zeros(2, 0, 12, 64)}, ValueError, "expected a divisor of q's 4"),
        ({"mask": torch.ones(2, 10, 12, dtype=torch.bool)}, TypeError, "mask has type Tensor, expected an OmniMask"),
        ({"mask": OmniMask.full(2, 11, kv_length=12)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(2, 10, kv_length=13)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(3, 10, kv_length=12)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(2, 10, kv_length=12, device="meta")}, ValueError, "mask is on meta, expected cpu"),
        ({"mask": OmniMask(torch.tensor([0, 13], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
        ({"mask": OmniMask(torch.tensor([-1, 3], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
        ({"mask": OmniMask(torch.tensor([5, 3], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
    ],
)
def test_errors_name_the_argument(changes, error, match):
    arguments = {name: torch.zeros(shape) for name, shape in GOOD.items()}
    arguments["mask"] = OmniMask.full(2, 10, kv_length=12)
    omni_attention(**arguments)
    with pytest.raises(error, match=match):
        omni_attention(**(arguments | changes))


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
