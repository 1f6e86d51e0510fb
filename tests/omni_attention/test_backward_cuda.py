"""omni_attention's CUDA backward: on a GPU if there is one, else, where it is built, on the PTX emulator.

The forward pass is the reference formula: what the kernels get is `out` rounded to the inputs' dtype, and lse.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import FLOAT_DTYPES, assert_within_budget, inside_larger, randint, randn
from tests.omni_attention.common import ONE_ROW_APART, SOFTCAPS, one_row_apart
from tests.ptx import sass

OPS = torch.ops.showo_ext
HALVES = (torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])


def random_mask(batch, rows, columns, count, seed, device="cpu"):
    """Up to `count` intervals a row, unsorted and overlapping; some rows empty; some blocks full, some empty."""
    raw = randint(0, columns + 1, (batch, rows, count, 2), seed=seed).sort(-1).values.int()
    raw[randint(0, 10, (batch, rows, count), seed=seed + 1) < 3] = 0
    raw[randint(0, 10, (batch, rows), seed=seed + 2) == 0] = 0
    for first in range(0, rows, 64):
        kind = (first // 64 + seed) % 4
        if kind == 0:
            raw[:, first : first + 64, 0, 0], raw[:, first : first + 64, 0, 1] = 0, columns
        elif kind == 1:
            raw[:, first : first + 64] = raw[:, first : first + 64].clamp(columns // 2, columns)
    return OmniMask(raw.to(device), columns)


def operands(batch, heads, kv_heads, mask, dim, dtype, device="cpu", seed=0):
    """q, k, v, dout, dlse."""
    q, dout = (randn(batch, heads, mask.q_length, dim, dtype=dtype, seed=seed + s, device=device) for s in (0, 3))
    k, v = (randn(batch, kv_heads, mask.kv_length, dim, dtype=dtype, seed=seed + s, device=device) for s in (1, 2))
    return q, k, v, dout, randn(batch, heads, mask.q_length, seed=seed + 4, device=device)


def gradients(q, k, v, dout, dlse, mask, scale, dtype, softcap=None):
    """out, lse and the gradients of the plain formula in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out, lse = reference.omni_attention(*leaves, mask, scale=scale, softcap=softcap, return_lse=True)
    loss = (out * dout.to(dtype)).sum()
    if dlse is not None:
        loss = loss + (lse * dlse.to(lse.dtype)).masked_fill(lse.isinf(), 0.0).sum()
    return out.detach(), lse.detach(), torch.autograd.grad(loss, leaves)


def backward(q, k, v, dout, dlse, mask, out, lse, scale, deterministic=False, softcap=None):
    return OPS.omni_attention_backward(
        dout, dlse, q, k, v, *make_plan(mask, 0), out, lse, scale, deterministic, softcap or 0.0
    )


def check(
    inputs, mask, *, scale=None, softcap=None, use_dlse=True, deterministic=False, arrange=lambda x: x, strict=True,
    factor=1.5,
):  # fmt: skip
    q, k, v, dout, dlse = inputs
    dlse = dlse if use_dlse else None
    scale = q.size(-1) ** -0.5 if scale is None else scale
    out, lse, oracle = gradients(q, k, v, dout, dlse, mask, scale, torch.float64, softcap)
    _, _, peer = gradients(q, k, v, dout, dlse, mask, scale, q.dtype, softcap)
    saved = out.to(q.dtype), lse.float()
    q, k, v, dout = (arrange(x) for x in (q, k, v, dout))
    actual = backward(q, k, v, dout, dlse, mask, *saved, scale, deterministic, softcap)
    for name, a, o, p, x in zip(("dq", "dk", "dv"), actual, oracle, peer, (q, k, v), strict=True):
        assert (a.dtype, a.shape) == (x.dtype, x.shape), name
        if not strict:  # dp - delta may cancel, down to the rounding of out: oracle and formula then give exact zeros
            terms = (
                (dout.double() * saved[0].double()).abs().sum(-1).max() * abs(scale) * max(q.abs().max(), k.abs().max())
            )
            noise = 4 * torch.finfo(a.dtype).eps * float(terms + dout.abs().max())
            p = p.double() + noise
        assert_within_budget(a, o, p, what=name, factor=factor)
    return actual


# ---- values ----------------------------------------------------------------------------------------------------------


@dims
@dtypes
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_instantiation(device, dtype, dim, deterministic):
    mask = random_mask(1, 70, 130, 2, seed=dim, device=device)
    check(operands(1, 4, 2, mask, dim, dtype, device), mask, deterministic=deterministic)


@dtypes
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", ONE_ROW_APART)
def test_every_row_of_a_tile_counts(device, dtype, case, deterministic):
    mask = one_row_apart(64, case).to(device)
    check(operands(64, 1, 1, mask, 32, dtype, device), mask, deterministic=deterministic)


@halves
@pytest.mark.parametrize("interval", [(1, 128), (0, 127)])
def test_a_full_block_beside_one_that_is_not(device, dtype, interval):
    """For head size 128 a thread block has both of them."""
    mask = OmniMask(torch.tensor(interval, dtype=torch.int32, device=device).expand(1, 64, 1, 2).contiguous(), 128)
    check(operands(1, 1, 1, mask, 128, dtype, device), mask)


SWEEP = given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    rows=st.one_of(st.integers(1, 140), st.sampled_from([1, 63, 64, 65, 128])),
    columns=st.one_of(st.integers(1, 200), st.sampled_from([1, 63, 64, 65, 127, 129])),
    dim=st.sampled_from([32, 64, 96, 128]),
    count=st.integers(1, 8),
    dtype=st.sampled_from(FLOAT_DTYPES),
    scale=st.sampled_from([None, 0.05, 1.0, -0.2, 0.0]),
    softcap=st.sampled_from(SOFTCAPS),
    use_dlse=st.booleans(),
    deterministic=st.booleans(),
    arrange=st.sampled_from(["bhsd", "bshd", "sliced", "expanded"]),
    seed=st.integers(0, 999),
)


def check_random_mask(
    batch, kv_heads, group, rows, columns, dim, count, dtype, scale, softcap, use_dlse, deterministic, arrange, seed
):
    mask = random_mask(batch, rows, columns, count, seed)
    layouts = {
        "bhsd": lambda x: x,
        "bshd": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": inside_larger,
        "expanded": lambda x: x,
    }
    inputs = operands(batch, group * kv_heads, kv_heads, mask, dim, dtype, seed=seed)
    if arrange == "expanded":
        inputs = (*(x[:, :1].expand(x.shape) for x in inputs[:4]), inputs[4])
    check(
        inputs, mask, scale=scale, softcap=softcap, use_dlse=use_dlse, deterministic=deterministic,
        arrange=layouts[arrange], strict=False, factor=2.0 if softcap and dtype == torch.float32 else 1.5,
    )  # fmt: skip


def test_random_masks(emulated):
    settings(deadline=None, max_examples=6)(SWEEP(check_random_mask))()


@pytest.mark.kernels
def test_many_random_masks(emulated):
    settings(deadline=None, max_examples=300)(SWEEP(check_random_mask))()


FORMATS = {
    "t2i": OmniMask.t2i_padded([9, 50], text_length=60, image_length=80),
    "t2i image rows against a cache": OmniMask.t2i_padded([9, 50], text_length=60, image_length=80).rows(60),
    "mmu": OmniMask.prefix(torch.tensor([90, 100]), 140),
    "mmu_vit": OmniMask.mmu_vit(2, 150, image_tokens=80),
    "causal": OmniMask.causal(2, 130),
    "one row against a cache": OmniMask.causal(1, 1, kv_length=200),
    "full": OmniMask.full(2, 65, kv_length=128),
    "packed": OmniMask.block_diagonal([[OmniMask.causal(1, 70), OmniMask.full(1, 33)], [OmniMask.causal(1, 100)]]),
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_formats(device, name, deterministic):
    mask = FORMATS[name].to(device)
    check(operands(mask.batch_size, 2, 1, mask, 64, torch.bfloat16, device), mask, deterministic=deterministic)


@dtypes
@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_without_columns_pass_no_gradient(device, dtype, deterministic):
    intervals = torch.zeros(1, 70, 1, 2, dtype=torch.int32)
    intervals[0, ::2, 0, 1] = 7
    mask = OmniMask(intervals.to(device), 70)
    dq, dk, dv = check(operands(1, 2, 2, mask, 32, dtype, device), mask, deterministic=deterministic)
    assert bool((dq[:, :, 1::2] == 0).all())
    assert bool((dk[:, :, 7:] == 0).all())
    assert bool((dv[:, :, 7:] == 0).all())


def test_columns_beyond_the_last_do_not_exist(device):
    wide = OmniMask(torch.tensor([-5, 1000], dtype=torch.int32).expand(1, 70, 1, 2).contiguous().to(device), 70)
    full = OmniMask.full(1, 70, device=device)
    q, k, v, dout, dlse = operands(1, 1, 1, full, 64, torch.float16, device)
    out, lse, _ = gradients(q, k, v, dout, dlse, full, 0.1, torch.float64)
    out, lse = out.to(q.dtype), lse.float()
    actual = backward(q, k, v, dout, dlse, wide, out, lse, 0.1, True)
    expected = backward(q, k, v, dout, dlse, full, out, lse, 0.1, True)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


# ---- the same bits ---------------------------------------------------------------------------------------------------


@dtypes
def test_reproducible(device, dtype):
    mask = random_mask(1, 150, 150, 2, seed=3, device=device)
    inputs = operands(1, 4, 2, mask, 32, dtype, device)
    first, second = (check(inputs, mask, deterministic=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first[1:], check(inputs, mask)[1:], strict=True):  # dk and dv are always so
        assert torch.equal(a, b)


def kernels(emulated):
    return {name for record in emulated.records() for name in ("dkdv", "dq_kernel", "convert") if name in record.kernel}


def test_deterministic_is_an_argument_and_a_global_setting():
    """What autograd asks of the backward operator."""

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is OPS.omni_attention_backward.default:
                asked.append(args[place] if len(args) > place else False)
            return function(*args, **(kwargs or {}))

    place = [x.name for x in OPS.omni_attention_backward.default._schema.arguments].index("deterministic")
    before = torch.are_deterministic_algorithms_enabled()
    q = randn(1, 1, 8, 32).requires_grad_()
    asked: list[bool] = []
    try:
        for setting in (False, True):
            torch.use_deterministic_algorithms(setting)
            for argument in (None, False, True):
                out = omni_attention(q, q, q, OmniMask.causal(1, 8), deterministic=argument)
                with Record():
                    out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert asked == [False, False, True, True, False, True]


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
@halves
@dims
def test_no_bank_conflicts(emulated, dtype, dim, deterministic):
    mask = OmniMask.causal(1, 256)
    q, k, v, dout, _ = operands(1, 1, 1, mask, dim, dtype)
    out, lse = torch.zeros_like(q), torch.zeros(1, 1, 256)
    backward(q, k, v, dout, None, mask, out, lse, 0.1, deterministic)
    assert kernels(emulated) == ({"dkdv", "dq_kernel"} if deterministic else {"dkdv", "convert"})
    for record in emulated.records():
        assert record.bank_conflicts == 0, record.kernel
    for tensor in emulated.records()[-1].tensors:
        assert tensor["never_written"] == 0, tensor


@dims
def test_few_bank_conflicts_in_fp32(emulated, dim):
    """Only where two rows of probabilities are stored at a time."""
    mask = OmniMask.causal(1, 128)
    q, k, v, dout, dlse = operands(1, 1, 1, mask, dim, torch.float32)
    backward(q, k, v, dout, dlse, mask, torch.zeros_like(q), torch.zeros(1, 1, 128), 0.1)
    main = [record for record in emulated.records() if "fp32" in record.kernel]
    assert len(main) == 2
    for record in main:
        assert record.bank_conflicts <= 0.02 * record.shared_wavefronts[1], record.kernel


def test_empty_blocks_cost_nothing(emulated):
    """Two packed samples cost two small ones; the limit is what the products of the visited blocks need."""
    mask = OmniMask.block_diagonal([[OmniMask.full(1, 128), OmniMask.full(1, 128)]])
    q, k, v, dout, _ = operands(1, 1, 1, mask, 64, torch.bfloat16)
    backward(q, k, v, dout, None, mask, torch.zeros_like(q), torch.zeros(1, 1, 256), 0.1)
    (main,) = (r for r in emulated.records() if "dkdv" in r.kernel)
    assert main.warps("mma") == 8 * 640  # eight blocks of 64 x 64


def main_kernel(emulated, mask, dim=64):
    """Counters of one head in bf16."""
    q, k, v, dout, _ = operands(mask.batch_size, 1, 1, mask, dim, torch.bfloat16)
    lse = torch.zeros(mask.batch_size, 1, mask.q_length)
    backward(q, k, v, dout, None, mask, torch.zeros_like(q), lse, 0.1)
    (main,) = (r for r in emulated.records() if "dkdv" in r.kernel)
    return main


@pytest.mark.kernels
def test_instructions_of_a_dense_head(emulated):
    """FlashAttention-2's main kernel takes 683,520 PTX warp-instructions for the same 163,840 mma."""
    main = main_kernel(emulated, OmniMask.full(1, 1024))
    assert main.warps("mma") == 163_840
    assert main.warp_instructions <= 683_520
    assert main.bank_conflicts == 0
    assert main.global_sectors[0] <= 1.02 * main.global_sectors[1]


@dims
def test_memory_traffic(emulated, dim):
    """Every byte of every tensor crosses the bus once in the two small kernels; no access moves half-used sectors."""
    rows = 256
    main_kernel(emulated, OmniMask.full(1, rows), dim)
    for record in emulated.records():
        if "stats" in record.kernel:
            assert record.global_sectors[0] <= 1.02 * (2 * rows * dim * 2 + rows * 4 + rows * 12) / 32
        elif "convert" in record.kernel:
            assert record.global_sectors[0] <= 1.02 * (rows * dim * 4 + rows * dim * 2) / 32
        elif "dkdv" in record.kernel:
            assert record.global_sectors[0] <= 1.02 * record.global_sectors[1]


AREAS = {
    "t2i 387": OmniMask.t2i_padded([90, 120, 60, 100]),
    "t2i 1155": OmniMask.t2i_padded([100], text_length=129, image_length=1026),
    "mixed batch": OmniMask.cat(
        [OmniMask.t2i_padded([90, 110]), OmniMask.causal(1, 387), OmniMask.prefix(torch.tensor([260]), 387)]
    ),
    "packed": OmniMask.block_diagonal(
        [[OmniMask.t2i_padded([0], text_length=n) for n in (29, 40)] + [OmniMask.causal(1, 60)]]
    ),
}


@pytest.mark.parametrize("name", AREAS)
def test_visited_area(emulated, name):
    """Pairs that the tensor cores computed: five products, each dim / 8 mma for a 16 x 16 sub-tile."""
    mask = OmniMask(AREAS[name].intervals, AREAS[name].kv_length)  # states of its own
    area = main_kernel(emulated, mask, 32).warps("mma") / (5 * 32 // 8) * 256
    assert area <= 1.25 * int(mask.columns_per_row().sum())


# ---- what ptxas made of it -------------------------------------------------------------------------------------------

OBJECTS = sass.OBJECTS / "omni_attention"
KERNELS = {"backward": 3 + 8, "backward_dkdv": 8, "backward_dq": 8, "backward_fp32": 8}
needs_objects = pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)


@needs_objects
@pytest.mark.parametrize("name", KERNELS)
def test_registers(name):
    """Registers: two thread blocks of 128 threads a multiprocessor leave a thread 255, three (D = 32 in 16 bits) 168.

    Of fp32's thread blocks of 256 threads a multiprocessor holds one, with 129 registers a thread as with 255.
    """
    kernels = sass.resources(OBJECTS / f"{name}.cu.o")
    assert len(kernels) == KERNELS[name]
    for kernel, used in kernels.items():
        three = "Li32E" in kernel and name != "backward_fp32"
        assert used.registers <= (64 if name == "backward" else 168 if three else 255), kernel


@needs_objects
@pytest.mark.parametrize(("dim", "limit"), [(64, 2.5), (96, 2.1), (128, 2.2)])
def test_inner_loop(dim, limit):
    """FlashAttention-2's backward for D = 64: 2.52 other instructions for each HMMA, and 92 bytes spilled.

    For D = 128 the loop holds both the code for full blocks and that for partial ones.
    """
    kernels = sass.functions(OBJECTS / "backward_dkdv.cu.o", f"Li{dim}E")
    assert len(kernels) == 2
    for kernel, code in kernels.items():
        loop = sass.inner_loop(code)
        assert loop.hmma == {64: 160, 96: 240, 128: 2 * 320}[dim], kernel
        assert loop.ratio <= limit, (kernel, loop)
