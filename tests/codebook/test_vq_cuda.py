"""vq_encode's CUDA kernels: on a GPU if there is one, else, where it is built, on the PTX emulator.

The tensor cores find the codes that can be nearest; what they cannot tell apart is computed exactly. Hence the answer
is that of a plain search with fp32 sums, bit for bit, and the tests here look for inputs where it might not be.
"""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import vq_encode
from showo_ext.testing import FLOAT_DTYPES, inside_larger, randint, randn, uniforms
from tests.ptx import sass
from tests.ptx.device import MMA_ROUNDINGS, mma_rounding
from tests.ptx.emulated import emulated_device, module_path

NAN, INF = float("nan"), float("inf")
BF16 = torch.bfloat16
OBJECTS = sass.OBJECTS / "codebook"
MANTISSA = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
LARGE = {torch.float32: 2e18, torch.float16: 3e4, torch.bfloat16: 2e18}  # squared, times 32: near the largest fp32
needs_emulator = pytest.mark.skipif(module_path() is None, reason="the PTX emulator is not built; `make emulator`")
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def plain_search(z, codebook):
    """The definition: fp32 sums of squared differences in rising order of channels, each step rounded once."""
    wide, codes = z.double(), codebook.double()
    sums = torch.zeros(z.shape[0], codes.shape[0], dtype=torch.float64, device=z.device)
    for d in range(z.shape[1]):
        difference = (wide[:, d, None] - codes[:, d]).float().double()
        sums = (sums + difference * difference).float().double()
    return sums.where(~sums.isnan(), torch.inf).argmin(1)


def check(z, codebook):
    assert torch.equal(vq_encode(z, codebook), plain_search(z, codebook))


def nudged(x, chance, seed):
    """Some of the numbers moved to a neighbour."""
    step = torch.exp2(x.float().abs().clamp(min=2.0**-20).log2().floor() - MANTISSA[x.dtype])
    moved = randint(-1, 2, x.shape, seed=seed, device=x.device) * (
        torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device) < chance
    )
    return (x.float() + step * moved).to(x.dtype)


# ---- values ----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("dim", [1, 4, 8, 16, 24, 32, 64, 72, 128, 200, 256, 264, 320])
def test_every_instantiation(device, dtype, dim):
    check(randn(70, dim, dtype=dtype, device=device), randn(140, dim, dtype=dtype, seed=dim, device=device))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 127, 128, 129])
@pytest.mark.parametrize("codes", [1, 31, 33, 64, 127, 128, 129, 513])
def test_tile_edges(device, rows, codes):
    check(randn(rows, 16, dtype=BF16, device=device), randn(codes, 16, dtype=BF16, seed=codes, device=device))


@dtypes
@pytest.mark.parametrize("dim", [16, 256, 272])
def test_the_last_code_of_a_partial_tile_wins(device, dtype, dim):
    """Codes after the last are zeros; each row is one of the codes, and the last tile's are all among them."""
    codebook = 1 + randn(133, dim, dtype=dtype, seed=dim, device=device).abs()
    assert torch.equal(vq_encode(codebook, codebook), torch.arange(133, device=device))


@dtypes
def test_splits_meet(device, dtype):
    """Three splits of 512 codes and one of two: near ties between them, and the same code in all of them."""
    entries = randn(512, 24, dtype=dtype, device=device)
    codebook = torch.cat([entries, nudged(entries, 0.01, 3), nudged(entries, 0.01, 4), entries[:2]])
    check(nudged(entries[::4], 0.5, 5), codebook)
    check(randn(100, 24, dtype=dtype, seed=7, device=device), codebook)


def check_near_ties(data):
    dtype, dim = data.draw(st.sampled_from(FLOAT_DTYPES)), data.draw(st.sampled_from([3, 8, 16, 40, 64, 130, 256, 288]))
    rows, codes = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 90))
    seed, kind = data.draw(st.integers(0, 999)), data.draw(st.sampled_from(["copies", "between", "shifted", "axes"]))
    copies, chance = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0.0, 1 / dim, 0.3]))
    entries = randn(codes, dim, dtype=dtype, seed=seed)
    codebook = nudged(entries.repeat(copies, 1), chance, seed)
    chosen = [codebook[randint(0, codes * copies, (rows,), seed=seed + i)].float() for i in range(2)]
    if kind == "copies":  # near several codes that differ by a few ulp
        z = chosen[0] + 0.05 * randn(rows, dim, seed=seed + 2)
    elif kind == "between":  # as far from one code as from another
        z = (chosen[0] + chosen[1]) / 2
    elif kind == "shifted":  # norms much larger than distances
        codebook, z = (codebook.float() + 30).to(dtype), chosen[0] + 30
    else:  # exact ties: rows on one axis, codes at plus and minus the same on all of them
        eye = torch.eye(dim).repeat(2, 1)[torch.randperm(2 * dim, generator=torch.Generator().manual_seed(seed))]
        codebook = (eye * (1 - 2 * randint(0, 2, (2 * dim, 1), seed=seed)).float()).to(dtype)
        z = randint(-1, 2, (rows, dim), seed=seed).float()
    check(z.to(dtype), codebook)


SWEEP = given(st.data())


def test_near_ties(emulated):
    settings(deadline=None, max_examples=40)(SWEEP(check_near_ties))()


@pytest.mark.kernels
def test_many_near_ties(emulated):
    settings(deadline=None, max_examples=500)(SWEEP(check_near_ties))()


def ties_told_apart_by_rounding(dtype, dim, rows, seed):
    """Pairs of codes with the very same distance to a row, whose partial sums of products go far up, or far down first.

    Rounding errors, which grow with the partial sums, would make one of the two the nearest.
    """
    quarter = (1 + uniforms(rows, dim // 4, seed=seed)) * torch.exp2(randint(-2, 3, (rows, dim // 4), seed=seed))
    z = quarter.repeat(1, 4).to(dtype)
    up, down = (z.reshape(rows, 4, -1).clone() for _ in range(2))
    up[:, 3], down[:, 0] = -up[:, 3], -down[:, 0]
    pairs = torch.stack([up, down], 1).reshape(2 * rows, dim)
    return z, pairs[torch.randperm(2 * rows, generator=torch.Generator().manual_seed(seed))]


@dtypes
@pytest.mark.parametrize("rounding", MMA_ROUNDINGS)
def test_ids_are_exact_however_the_tensor_cores_round(emulated, dtype, rounding):
    with mma_rounding(rounding):
        check(randn(70, 64, dtype=dtype), nudged(randn(20, 64, dtype=dtype).repeat(4, 1), 0.1, 2))
        for dim in (16, 256, 320):
            check(*ties_told_apart_by_rounding(dtype, dim, 32, seed=dim))


@dtypes
def test_equal_and_duplicated_entries(device, dtype):
    z = randn(40, 32, dtype=dtype, device=device)
    check(z, torch.zeros(150, 32, dtype=dtype, device=device))
    check(z, z[:1].expand(150, -1))
    check(z, torch.cat([torch.zeros(200, 32, dtype=dtype, device=device), z, z]))  # unused entries come first
    check(z, torch.cat([z.flip(0), torch.zeros(200, 32, dtype=dtype, device=device), z, z, z, z, z]))


@dtypes
@pytest.mark.parametrize("scale", [1e-3, 1e-7, 1e-20, 1e-30, 1e-38, 1e-42])
def test_small_numbers(device, dtype, scale):
    z, codebook = randn(30, 32, device=device) * scale, randn(100, 32, seed=1, device=device) * scale
    check(z.to(dtype), codebook.to(dtype))
    check(randn(30, 32, device=device).to(dtype), codebook.to(dtype))
    check(z.to(dtype), randn(100, 32, seed=1, device=device).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("exponent", range(-72, -60, 2))
def test_near_ties_whose_products_vanish_in_part(device, dtype, exponent):
    """The error of a score is then no longer small beside the norms."""
    entries = randn(12, 64, dtype=dtype, device=device)
    codebook, z = nudged(entries.repeat(10, 1), 0.1, 2), nudged(entries.repeat(5, 1), 0.3, 3)
    check(z * 2.0**exponent, codebook * 2.0**exponent)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_code_whose_norm_is_too_large_may_be_the_nearest(device, dtype):
    """The other code lies behind the row, so that its score, which alone can be trusted, is far below zero."""
    direction = randn(1, 32, device=device)
    direction = direction / direction.norm()
    codebook = torch.cat([-(2.0**59.5) * direction, 2.0**60.2 * direction])
    assert vq_encode((2.0**57.9 * direction).to(dtype), codebook.to(dtype)).tolist() == [1]
    check((2.0**57.9 * direction).to(dtype), codebook.to(dtype))


@dtypes
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-2, 1e-4])
def test_large_numbers(device, dtype, scale):
    """Norms around the largest number: sums overflow for some pairs and not for others."""
    scale *= LARGE[dtype]
    z, codebook = randn(30, 32, device=device) * scale, randn(100, 32, seed=1, device=device) * scale
    check(z.to(dtype), codebook.to(dtype))
    spread = torch.exp2(-6.0 * torch.arange(100, device=device).remainder(20))[:, None]
    check((z * spread[:30]).to(dtype), (codebook * spread).to(dtype))
    check(randn(30, 32, device=device).to(dtype), codebook.to(dtype))
    check(z.to(dtype), randn(100, 32, seed=1, device=device).to(dtype))
    near = codebook.to(dtype)[::5]
    check(near, codebook.to(dtype))


@dtypes
@pytest.mark.parametrize("dim", [2, 32, 300])
def test_special_values(device, dtype, dim):
    """NaN and infinities in some rows and codes touch no other row or code."""
    z, codebook = randn(90, dim, dtype=dtype, device=device), randn(150, dim, dtype=dtype, seed=1, device=device)
    for i, value in enumerate((NAN, INF, -INF, torch.finfo(dtype).max, torch.finfo(dtype).tiny)):
        z[i::9, i % dim] = value
        codebook[i::11, i * 7 % dim] = value
    check(z, codebook)
    check(z, codebook[:5])
    check(z, torch.full_like(codebook, NAN))
    check(torch.full_like(z, INF), codebook)


@dtypes
@pytest.mark.parametrize("dim", [24, 27])
def test_layouts(device, dtype, dim):
    z, codebook = randn(50, dim, dtype=dtype, device=device), randn(70, dim, dtype=dtype, seed=1, device=device)
    expected = vq_encode(z, codebook)
    for last_dim_contiguous in (True, False):
        view = functools.partial(inside_larger, last_dim_contiguous=last_dim_contiguous)
        assert torch.equal(vq_encode(view(z), view(codebook)), expected)
    z_view, codebook_view = inside_larger(z, offset=8, pad=16), inside_larger(codebook, offset=4, pad=8)
    assert torch.equal(vq_encode(z_view, codebook_view), expected)
    assert torch.equal(vq_encode(z[:1].expand(9, -1), codebook), expected[:1].expand(9))


# ---- what it costs ---------------------------------------------------------------------------------------------------


def cost(z, codebook):
    """Counters of preparation, scores and decision."""
    with emulated_device() as device:
        check(z, codebook)
        records = device.records()
    assert [name for r in records for name in ("prepare", "scores", "decide") if name in r.kernel] == [
        "prepare", "scores", "decide",
    ]  # fmt: skip
    assert all(r.bank_conflicts == 0 for r in records)
    for record in records:
        assert all(tensor["never_written"] == 0 for tensor in record.tensors)
    return records


@needs_emulator
@dtypes
@pytest.mark.parametrize("dim", [16, 64, 256, 512])
def test_products_are_counted(dtype, dim):
    """No product but those of rows with codes; fp32 takes three of halves."""
    rows, codes = 128, 256
    scores = cost(randn(rows, dim, dtype=dtype), randn(codes, dim, dtype=dtype, seed=1))[1]
    times = 3 if dtype == torch.float32 else 1
    assert scores.warps("mma") == times * rows * codes * dim // (16 * 8 * 16)


@needs_emulator
@dtypes
@pytest.mark.parametrize("dim", [16, 64, 256])
def test_traffic_is_the_least(dtype, dim):
    """Rows of their own codes: no near ties. Sectors of 32 bytes, every block of rows once."""
    rows, codes, size = 256, 512, torch.empty((), dtype=dtype).element_size()
    codebook = randn(codes, dim, dtype=dtype)
    prepare, scores, decide = cost(codebook[:rows], codebook)
    once, records = codes * dim * size // 32, codes // 32 * 288 // 32
    blocks = scores.grid[0]
    assert prepare.global_sectors[0] == once * (2 if size == 4 else 1) + records  # fp32: and the halves are written
    assert scores.global_sectors[0] == rows * dim * size // 32 + blocks * (once + records) + rows * (16 + 16) // 32
    assert decide.global_sectors[0] <= rows * (2 * 16 + 16 + 8) // 32 + 8  # tops are looked at twice
    assert all(r.global_sectors[0] <= 1.02 * r.global_sectors[1] for r in (prepare, scores))


@needs_emulator
@dtypes
def test_few_rows_are_computed_again(dtype):
    """Noise is the hard case: its nearest codes are far away and hardly nearer than the next. An exact comparison of a
    row with the codebook would take 1.5 warp-instructions per channel and 32 codes, so 3,000 for each row here."""
    rows, codes, dim = 256, 512, 128
    decide = cost(randn(rows, dim, dtype=dtype), randn(codes, dim, dtype=dtype, seed=1))[2]
    compared_with_everything = 1.5 * codes * dim / 32
    assert decide.warp_instructions <= 0.05 * rows * compared_with_everything
    assert decide.tensor(f"{str(dtype).removeprefix('torch.')}[{rows}, {dim}]")["read"] <= 0.08 * rows * dim * 4


@needs_emulator
@dtypes
def test_no_bank_conflicts_where_all_rows_meet_all_codes(dtype):
    decide = cost(torch.full((70, 64), NAN, dtype=dtype), randn(150, 64, dtype=dtype))[2]
    assert decide.shared_wavefronts[0] > 10_000


@needs_emulator
def test_instructions_at_a_usual_codebook():
    """The kernel that compared everything with FMAs took 3,329,712 warp-instructions for this."""
    records = cost(randn(128, 256, dtype=BF16), randn(1024, 256, dtype=BF16, seed=1))
    assert records[1].warps("mma") == 128 * 1024 * 256 // 2048
    assert sum(r.warp_instructions for r in records) <= 150_000


# ---- what ptxas made of it -------------------------------------------------------------------------------------------

needs_objects = pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)


@needs_objects
@pytest.mark.parametrize("name", ["vq", "vq_f16", "vq_bf16", "vq_f32", "lookup", "lfq"])
def test_registers(name):
    kernels = sass.resources(OBJECTS / f"{name}.cu.o")
    assert kernels
    for kernel, used in kernels.items():
        if "vq_scores" not in kernel:
            assert used.registers <= 80, kernel


@needs_objects
@pytest.mark.parametrize(("name", "kernel", "hmma", "limit"), [
    ("vq_f16", "Li512ELi2ELb0E", 128, 0.7), ("vq_bf16", "Li512ELi2ELb0E", 128, 0.7),
    ("vq_f16", "Li128ELi2ELb0E", 32, 1.8), ("vq_f32", "Li512ELi2ELb0E", 192, 0.5),
    ("vq_f32", "Li1024ELi1ELb0E", 192, 1.0),
])  # fmt: skip
def test_inner_loop(name, kernel, hmma, limit):
    ((found, code),) = sass.functions(OBJECTS / f"{name}.cu.o", kernel).items()
    loop = sass.inner_loop(code)
    assert loop.hmma == hmma, found
    assert loop.ratio <= limit, (found, loop)
