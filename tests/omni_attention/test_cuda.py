"""omni_attention's CUDA forward kernels: on a GPU if there is one, else, where it is built, on the PTX emulator.

The operator's meaning is tested in test_omni_attention.py; here it is what is particular to these kernels: tile edges,
block states, sub-tiles, layouts that cp.async cannot take, what they cost, and what ptxas made of them.
"""

import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask, omni_attention
from showo_ext.ops._attention_inputs import MAX_ROW_BYTES, strides_fit
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import ENOUGH_ROWS, FLOAT_DTYPES, inside_larger, randint, randn
from tests.omni_attention.common import ONE_ROW_APART, SOFTCAPS, assert_attention, one_row_apart, operands
from tests.ptx import sass
from tests.ptx.emulated import emulated_device, module_path

OPS = torch.ops.showo_ext
BF16 = torch.bfloat16
OBJECTS = sass.OBJECTS / "omni_attention"
needs_emulator = pytest.mark.skipif(module_path() is None, reason="the PTX emulator is not built; `make emulator`")
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])


def attend(q, k, v, mask, scale, tile_rows, softcap=None):
    """The operator with a tile of one's choice: fp32, and all with a softcap, have 64 rows only."""
    rows = 64 if q.dtype == torch.float32 or softcap is not None else tile_rows
    return OPS.omni_attention_forward(q, k, v, *make_plan(mask, rows), scale, False, softcap or 0.0)


def check(q, k, v, mask, *, scale=0.125, tile_rows=128, softcap=None, rms=False):
    out, lse = attend(q, k, v, mask, scale, tile_rows, softcap)
    assert_attention(out, lse, q, k, v, mask, scale, softcap=softcap, rms=rms)
    return out, lse


def random_mask(batch, rows, columns, count, seed, device="cpu"):
    """Unsorted, overlapping intervals; some rows empty, some with one column, long runs of equal rows."""
    ends = randint(0, columns + 1, (batch, rows, count, 2), seed=seed).sort(-1).values.int()
    kind = randint(0, 8, (batch, rows), seed=seed + 1)
    ends[kind == 0] = 0
    one = randint(0, max(columns, 1), (batch, rows, 1, 1), seed=seed + 2).int()
    single = torch.cat([one, one + 1], -1).expand(-1, -1, count, -1)
    if columns:
        ends = torch.where((kind == 1)[..., None, None], single, ends)
    run = 1 + 40 * (seed % 2)
    ends = ends[:, torch.arange(rows) // run * run]
    return OmniMask(ends.contiguous().to(device), columns)


# ---- values ----------------------------------------------------------------------------------------------------------


@dtypes
@dims
@pytest.mark.parametrize("tile_rows", [64, 128])
def test_every_instantiation(device, dtype, dim, tile_rows):
    mask = random_mask(1, 129, 140, 2, seed=dim, device=device)
    check(*operands(mask, dim, dtype, heads=4, kv_heads=2), mask, tile_rows=tile_rows)


@pytest.mark.parametrize("rows", [1, 15, 17, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("columns", [1, 33, 64, 97])
def test_tile_edges(device, rows, columns):
    mask = OmniMask.full(1, rows, kv_length=columns, device=device)
    check(*operands(mask, 64, BF16, seed=rows), mask)
    if columns == 97:
        check(*operands(mask, 128, torch.float16, seed=rows), mask)


@dtypes
@pytest.mark.parametrize("tile_rows", [64, 128])
@pytest.mark.parametrize("case", ONE_ROW_APART)
def test_every_row_of_a_tile_counts(device, dtype, case, tile_rows):
    mask = one_row_apart(tile_rows, case).to(device)
    check(*operands(mask, 32, dtype), mask, tile_rows=tile_rows)


@dims
@dtypes
@pytest.mark.parametrize("scale", [-0.2, 0.0])
def test_scales_that_are_not_positive(device, dtype, dim, scale):
    mask = OmniMask.causal(1, 20, kv_length=40, device=device)
    check(*operands(mask, dim, dtype), mask, scale=scale)


LAYOUTS = {
    "bhsd": lambda x: x,
    "bshd": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "misaligned": inside_larger,
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


def check_random_mask(data, largest):
    rows = data.draw(st.one_of(st.integers(1, largest), st.sampled_from([1, 16, 63, 64, 65, 127, 128, 129])))
    columns = data.draw(st.one_of(st.integers(0, largest + 60), st.sampled_from([1, 16, 32, 63, 64, 65, 128])))
    count, seed = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 999))
    dtype, dim = data.draw(st.sampled_from(FLOAT_DTYPES)), data.draw(st.sampled_from([32, 64, 96, 128]))
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    batch = max(data.draw(st.integers(1, 2)), ENOUGH_ROWS // (kv_heads * group * rows))
    mask = random_mask(batch, rows, columns, count, seed)
    # With a scale of 0 torch's averages of few columns may be exact, and the budget in fp32 is then less than what PTX
    # allows ex2; test_scales_that_are_not_positive has that case.
    scale = data.draw(st.sampled_from([0.125, 1.0, -0.2] + [0.0] * (dtype != torch.float32)))
    tile_rows, softcap = data.draw(st.sampled_from([64, 128])), data.draw(st.sampled_from(SOFTCAPS))
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    mask = OmniMask(mask.intervals, columns)
    inputs = [layout(x) for x in operands(mask, dim, dtype, heads=kv_heads * group, kv_heads=kv_heads, seed=seed)]
    check(*inputs, mask, scale=scale, tile_rows=tile_rows, softcap=softcap, rms=True)


def search(examples, largest):
    @settings(deadline=None, max_examples=examples)
    @given(st.data())
    def run(data):
        check_random_mask(data, largest)

    run()


def test_random_masks(emulated):
    search(examples=20, largest=200)


@pytest.mark.kernels
def test_many_random_masks(emulated):
    search(examples=300, largest=400)


@dtypes
@pytest.mark.parametrize("layout", ["bshd", "fused", "misaligned", "expanded"])
def test_layouts(device, dtype, layout):
    mask = OmniMask.t2i_padded([3, 40], text_length=50, image_length=30).to(device)
    q, k, v = operands(mask, 64, dtype, heads=2, kv_heads=2)
    expected = omni_attention(q, k, v, mask)
    if layout == "bshd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "fused":
        q, k, v = torch.stack([q, k, v], 3).transpose(1, 2).contiguous().transpose(1, 2).unbind(3)
    elif layout == "misaligned":
        q, k, v = (inside_larger(x) for x in (q, k, v))
    else:
        k, v = (x[:, :1].expand(-1, 2, -1, -1) for x in (k, v))
        expected = omni_attention(q, k.contiguous(), v.contiguous(), mask)
    assert torch.equal(omni_attention(q, k, v, mask), expected)


def far_apart(x, step):
    """The same values with rows `step` elements apart, in a mapping of which nothing but these rows is touched."""
    _, heads, rows, _ = x.shape
    strides = (heads * rows * step, rows * step, step, 1)
    size = x.size(0) * strides[0] * x.element_size()
    return torch.frombuffer(mmap.mmap(-1, size), dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("beyond", [False, True])
def test_rows_far_apart(emulated, dtype, beyond):
    """Three kinds of kernels, on both sides of the limit beyond which rows are copied; one tensor at a time lies so."""
    mask = OmniMask.causal(1, 2, kv_length=3)
    near = [*operands(mask, 32, dtype), randn(1, 1, 2, 32, dtype=dtype, seed=3)]
    step = (MAX_ROW_BYTES - (0 if beyond else 16)) // dtype.itemsize
    assert strides_fit(far_apart(near[0], step)) == (not beyond)

    def run(q, k, v, dout):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = omni_attention(*leaves, mask, scale=0.1, deterministic=True)
        return [out, attend(q, k, v, mask, 0.1, 64)[0], *torch.autograd.grad(out, leaves, dout)]

    expected = run(*near)
    for i in range(4):
        inputs = [far_apart(x, step) if i == j else x for j, x in enumerate(near)]
        assert all(torch.equal(a, e) for a, e in zip(run(*inputs), expected, strict=True))


@dims
@pytest.mark.parametrize("rows", [9, 130])  # those of the split-KV kernels, and of these
def test_a_row_of_one_column_is_that_columns_v(device, dim, rows):
    columns = randint(0, 200, (1, rows), seed=dim)
    intervals = torch.stack([columns, columns + 1], -1).unsqueeze(2).int()
    mask = OmniMask(intervals.to(device), 200)
    q, k, v = operands(mask, dim, torch.float32)
    assert torch.equal(omni_attention(q, k, v, mask, scale=-1.3), v[:, :, columns[0].to(device)])


@dtypes
def test_one_row_inside_a_larger_tensor(device, dtype):
    """Dims of size 1 keep odd strides through torch.empty_like: found by the search above."""
    mask = OmniMask.full(1, 1, kv_length=20, device=device)
    q, k, v = operands(mask, 32, dtype)
    assert torch.equal(omni_attention(inside_larger(q), k, v, mask), omni_attention(q, k, v, mask))


FORMATS = {
    "t2i": OmniMask.t2i_padded([90, 120]),
    "image rows against a cache": OmniMask.t2i_padded([90, 120]).rows(129),
    "mmu": OmniMask.prefix(torch.tensor([258, 257]), 387),
    "mmu_vit": OmniMask.mmu_vit(1, 300, image_tokens=200),
    "causal": OmniMask.causal(1, 387),
    "few rows against a cache": OmniMask.causal(1, 20, kv_length=2500),
    "packed": OmniMask.block_diagonal([[OmniMask.causal(1, 70), OmniMask.full(1, 133)], [OmniMask.causal(1, 100)]]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(device, name):
    mask = FORMATS[name].to(device)
    mask = OmniMask(mask.intervals.clone(), mask.kv_length)  # states of its own
    check(*operands(mask, 64, BF16), mask)


def test_a_mask_of_batch_one_serves_all(device):
    q, k, v = (randn(3, 2, 90, 64, dtype=BF16, seed=s, device=device) for s in range(3))
    mask = random_mask(1, 90, 90, 3, seed=1, device=device)
    assert torch.equal(omni_attention(q, k, v, mask), omni_attention(q, k, v, OmniMask.cat([mask] * 3)))


@dtypes
def test_intervals_out_of_range_are_cut(device, dtype):
    wild = torch.tensor([[-(2**31), 2**31 - 1], [-5, 3], [60, 90], [7, 2], [80, 100], [-9, -3]], dtype=torch.int32)
    intervals = wild.repeat_interleave(20, 0).view(1, 120, 1, 2).to(device)
    mask, cut = OmniMask(intervals, 70), OmniMask(intervals.clamp(0, 70), 70)
    inputs = operands(mask, 64, dtype)
    assert torch.equal(omni_attention(*inputs, mask), check(*inputs, cut, tile_rows=64)[0])


@dtypes
def test_nan_and_infinity_stay_in_their_row(device, dtype):
    q, k, v = (randn(1, 1, 100, 64, dtype=dtype, seed=s, device=device) for s in range(3))
    q[0, 0, 20, 3], q[0, 0, 77, 5] = float("nan"), float("inf")
    out, lse = omni_attention(q, k, v, OmniMask.causal(1, 100, device=device), return_lse=True)
    hit = torch.zeros(100, dtype=torch.bool, device=device)
    hit[[20, 77]] = True
    assert torch.equal(out[0, 0].isnan().all(-1), hit)
    assert torch.equal(out[0, 0].isnan().any(-1), hit)
    assert torch.equal(lse[0, 0].isnan(), hit)


@dtypes
def test_maxima_that_rise_and_fall(device, dtype):
    """Scores that grow by far more than the rescaling threshold from block to block, and shrink again."""
    q, k, v = (randn(1, 1, 260, 64, dtype=dtype, seed=s, device=device) for s in range(3))
    growth = torch.linspace(0.0, 6.0, 260, device=device).view(1, 1, -1, 1)
    mask = OmniMask.full(1, 260, device=device)
    for factor in (growth, growth.flip(2)):
        check(q, (k * factor).to(dtype), v, mask, scale=1.0)


def test_same_bits_every_time_and_for_every_order(device):
    mask = OmniMask.t2i_padded([3, 60], text_length=130, image_length=66).to(device)
    q, k, v = operands(mask, 64, BF16, heads=2)
    plan = make_plan(mask, 128)
    orders = (plan, plan._replace(order=plan.order.flip(0)))
    results = [OPS.omni_attention_forward(q, k, v, *plan, 0.1)[0] for plan in orders]
    assert torch.equal(*results)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def cost(mask, dim=64):
    """Counters of one head in bf16 with the large tile; the last launch is the kernel."""
    with emulated_device() as device:
        mask = OmniMask(mask.intervals, mask.kv_length)
        attend(*operands(mask, dim, BF16), mask, dim**-0.5, 128)
        counters = device.records()[-1]
    assert "omni_forward_kernel" in counters.kernel
    assert counters.bank_conflicts == 0
    return counters


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_no_bank_conflicts_in_fp32(emulated, dim):
    mask = OmniMask.causal(1, 140)
    attend(*operands(mask, dim, torch.float32), mask, 0.1, 64)
    (counters,) = [record for record in emulated.records() if "forward_f32" in record.kernel]
    assert counters.bank_conflicts == 0


def instructions(counters) -> int:
    return sum(count for count, _ in counters.classes.values())


def visited_area(counters, dim=64) -> float:
    """Pairs that the tensor cores computed: a 16 x 16 sub-tile takes dim / 8 mma for scores and as many for outputs."""
    return counters.warps("mma") / (dim // 4) * 256


@needs_emulator
def test_dense_head_costs_less_than_flash_attention_2():
    counters = cost(OmniMask.full(1, 1024))
    assert counters.warps("mma") == 65_536
    assert instructions(counters) <= 332_256
    assert counters.global_sectors[0] == counters.global_sectors[1]


@needs_emulator
def test_t2i_costs_three_quarters_of_flash_attention_2():
    """FlashAttention-2 ran on the rows of text and image alone; rows of padding are made empty to compare alike."""
    mask = OmniMask.t2i_padded([90, 120])
    padded = cost(mask)
    intervals = mask.intervals.clone()
    intervals[0, :90] = intervals[1, :120] = 0
    counters = cost(OmniMask(intervals, 387))
    assert counters.warps("mma") <= 0.75 * 20_480
    assert instructions(counters) <= 0.75 * 126_942
    # With the official mask, in which rows of padding see each other, FlashAttention-2 would have more to do.
    assert padded.warps("mma") <= 0.75 * 20_480
    assert instructions(padded) <= 0.75 * 126_942


def touched_area(mask) -> int:
    """Area of the 16 x 16 sub-tiles in which some row sees some column: what the kernel visits, without running it."""
    dense = mask.to_dense()
    dense = torch.nn.functional.pad(dense, (0, -dense.size(2) % 16, 0, -dense.size(1) % 16))
    return int(dense.unflatten(2, (-1, 16)).any(3).unflatten(1, (-1, 16)).any(2).sum()) * 256


def packed(samples):
    """Masks of samples without padding, one after the other in one row."""
    return OmniMask.block_diagonal([samples])


TEXTS = [126, 39, 9, 60, 21, 14, 33, 75, 12, 3]  # places that text takes of 129 in t2i rows; 3: dropped condition
PADS = [129 - n for n in TEXTS]
# 10 t2i, 4 lm, 10 mmu of stages 2 and 3. mmu sees 259 columns, `mmu soi codes eoi`; text and its right padding, and
# all of lm, are causal.
BATCH = [OmniMask.t2i_padded(PADS), OmniMask.causal(4, 387), OmniMask.prefix(torch.full((10,), 259), 387)]
AREAS = {
    "t2i 387": OmniMask.t2i_padded([90, 120, 60, 100]),
    "t2i 1155": OmniMask.t2i_padded([100], text_length=129, image_length=1026),
    "mixed batch": OmniMask.cat([OmniMask.t2i_padded([90, 110]), BATCH[1].samples(0, 1), BATCH[2].samples(0, 1)]),
    "packed": packed([OmniMask.t2i_padded([0], text_length=n) for n in (29, 40)] + [OmniMask.causal(1, 60)]),
}
LARGE_AREAS = {
    "t2i 387": OmniMask.t2i_padded(PADS),
    "t2i 1155": OmniMask.t2i_padded(PADS[:4], text_length=129, image_length=1026),
    "batch of 24": OmniMask.cat(BATCH),
    "batch of 24, packed": packed(
        [OmniMask.t2i_padded([0], text_length=n) for n in TEXTS]
        + [OmniMask.causal(1, n) for n in (387, 300, 129, 45)]
        + [OmniMask.prefix(torch.tensor([259]), 259 + n) for n in TEXTS]
    ),
    "1155, packed": packed(
        [OmniMask.t2i_padded([0], text_length=n, image_length=1026) for n in TEXTS[:3]] + [OmniMask.causal(1, 200)]
    ),
}


@needs_emulator
@pytest.mark.parametrize("name", AREAS)
def test_visited_area(name):
    mask = AREAS[name]
    visited = visited_area(cost(mask, 32), 32)
    assert visited == touched_area(mask)
    assert visited <= 1.25 * int(mask.columns_per_row().sum())


@pytest.mark.parametrize("name", LARGE_AREAS)
def test_touched_area_of_training_batches(name):
    mask = LARGE_AREAS[name]
    assert touched_area(mask) <= 1.25 * int(mask.columns_per_row().sum())


@needs_emulator
@pytest.mark.kernels
@pytest.mark.parametrize("name", LARGE_AREAS)
def test_visited_area_of_training_batches(name):
    assert visited_area(cost(LARGE_AREAS[name], 32), 32) == touched_area(LARGE_AREAS[name])


# ---- what ptxas made of it -------------------------------------------------------------------------------------------

needs_objects = pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)


@needs_objects
@pytest.mark.parametrize("name", ["forward_f16", "forward_bf16", "forward_f32", "block_table"])
def test_registers(name):
    kernels = sass.resources(OBJECTS / f"{name}.cu.o")
    assert kernels
    for kernel, used in kernels.items():
        if name != "block_table" and "ELi1E" in kernel:
            # As many thread blocks a multiprocessor as its shared memory holds: 3 for D of 64 and 128, else 4 or more.
            limits = {32: 128, 64: 168, 96: 128, 128: 168, 256: 255}  # of 256 shared memory holds one
            assert used.registers <= next(n for dim, n in limits.items() if f"Li{dim}E" in kernel), kernel


@needs_objects
@pytest.mark.parametrize(("dim", "limit", "limit_of_all"), [(64, 3.3, 4.4), (128, 2.3, 3.9)])
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_inner_loop(name, dim, limit, limit_of_all):
    """FlashAttention-2 has 3.48 (D = 64) and 2.55 (D = 128) other instructions for each HMMA; here 3.26 and 2.27.

    Its figures include rescaling, which it does in every iteration; an iteration here jumps over it unless a maximum
    grows by 2^8 (of the dense head above 1 in 16 enters, none rescales outputs), and over reading the block table but
    for 1 in 32. If both ran in every iteration, these would be 4.31 and 3.86: an iteration has 128 HMMA, there 256.
    """
    ((kernel, code),) = sass.functions(OBJECTS / f"forward_{name}.cu.o", f"Li{dim}ELi2E").items()
    loop = sass.inner_loop(code)
    assert loop.hmma == 128, kernel
    assert loop.ratio <= limit, (kernel, loop)
    assert loop.all_others / loop.hmma <= limit_of_all, (kernel, loop)
