"""What the split-KV kernels of test_decode_cuda.py cost on the emulated device, and what ptxas made of them."""

import pytest
import torch

from showo_ext import OmniMask
from showo_ext.ops import _decode
from tests.omni_attention.common import operands
from tests.omni_attention.test_decode_cuda import BF16, decode, dims, dtypes
from tests.ptx import sass

OBJECTS = sass.OBJECTS / "omni_attention"

# ---- what it costs ---------------------------------------------------------------------------------------------------

COSTS = {
    "one row": (OmniMask.causal(1, 1, kv_length=2500), 1, 1),
    "one row, one split": (OmniMask.causal(1, 1, kv_length=500), 1, 1),
    "a group of eight": (OmniMask.causal(1, 1, kv_length=1155), 8, 1),
    "four tiles of packed rows": (OmniMask.causal(1, 16, kv_length=1155), 4, 1),
    "ragged batch": (OmniMask(torch.tensor([[0, 900], [0, 333]], dtype=torch.int32).view(2, 1, 1, 2), 1000), 4, 2),
    "holes": (OmniMask(torch.tensor([[100, 200], [900, 1300]], dtype=torch.int32).view(1, 1, 2, 2), 2000), 2, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@dims
@pytest.mark.parametrize("name", COSTS)
def test_keys_and_values_are_read_once(emulated, name, dtype, dim):
    """Sectors of the split kernel within 2% of what must cross the bus; the workspace and the few intervals apart."""
    mask, heads, kv_heads = COSTS[name]
    inputs = operands(mask, dim, dtype, heads=heads, kv_heads=kv_heads)
    decode(*inputs, mask, dim**-0.5)
    record = emulated.records()[0]
    block = 32 if dtype == torch.float32 else 64
    visited = sum(
        min(block, mask.kv_length - first)
        for dense in mask.to_dense().any(1)
        for first in range(0, mask.kv_length, block)
        if dense[first : first + block].any()
    )
    splits = _decode.splits(mask.batch_size, heads, kv_heads, mask.q_length, mask.kv_length)
    element, rows = inputs[0].element_size(), mask.batch_size * heads * mask.q_length
    share = rows * splits * (4 * dim + 32) // 32  # outputs, and a sector for (m, sum)
    intervals = mask.batch_size * kv_heads * splits * mask.q_length * 2
    queries = rows * splits * dim * element // 32  # 16 rows at most, read by every split
    columns = 2 * kv_heads * visited * dim * element // 32
    results = rows * (dim * element + 32) // 32
    apart = share + intervals + queries if splits > 1 else intervals + queries
    assert record.global_sectors[0] <= 1.02 * (columns + (results if splits == 1 else 0)) + apart
    assert apart <= 0.1 * columns or mask.q_length > 1
    for r in emulated.records():
        assert r.bank_conflicts == 0, r.kernel
        assert r.global_sectors[0] <= 1.02 * r.global_sectors[1] + rows * splits + 8, r.kernel


@pytest.mark.parametrize(("dtype", "dim", "limit"), [(BF16, 64, 880), (BF16, 128, 1080), (torch.float32, 64, 4050)])
def test_instructions_per_64_columns(emulated, dtype, dim, limit):
    """PTX warp-instructions of a thread block for one row. Reading 64 columns takes an A100 some 1,260 clocks per
    multiprocessor for 16 bits and D = 64, at four instructions a clock."""
    counts = []
    for columns in (1024, 2048):
        mask = OmniMask.full(1, 1, kv_length=columns)
        decode(*operands(mask, dim, dtype), mask, splits=1)
        counts.append(emulated.records()[-1].warp_instructions)
    assert (counts[1] - counts[0]) / 16 <= limit


@dtypes
def test_empty_blocks_cost_nothing(emulated, dtype):
    intervals = torch.tensor([[256, 512], [6000, 6000]], dtype=torch.int32).view(1, 1, 2, 2)
    counts = []
    for mask in (OmniMask(intervals, 8192), OmniMask(intervals.clamp(max=512), 512)):
        decode(*operands(mask, 64, dtype), mask, splits=1)
        counts.append(emulated.records()[-1])
    assert counts[0].global_sectors[0] == counts[1].global_sectors[0]
    assert counts[0].warp_instructions <= 1.2 * counts[1].warp_instructions


# ---- what ptxas made of it -------------------------------------------------------------------------------------------

needs_objects = pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)


REGISTERS = {
    "decode": {32: 88, 64: 112, 96: 144, 128: 176, 256: 255},
    "decode_f32": {32: 160, 64: 176, 96: 200, 128: 208},
}


@needs_objects
@pytest.mark.parametrize("name", REGISTERS)
def test_registers(name):
    """Registers never bound the thread blocks of a multiprocessor below two (three up to D = 96 in 16 bits)."""
    kernels = sass.resources(OBJECTS / f"{name}.cu.o")
    assert len(kernels) == {"decode": 13, "decode_f32": 4}[name]
    for kernel, used in kernels.items():
        limits = [limit for dim, limit in REGISTERS[name].items() if f"Li{dim}E" in kernel] or [40]  # combine has none
        assert used.registers <= limits[0], kernel


@needs_objects
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("type_name", ["__half", "__nv_bfloat16"])
def test_inner_loop(type_name, dim):
    """The loop over units of 16 columns, which computes four products of 8 columns for every 16 dims: it holds one
    copy for full units and one for partial ones, and the latter's intervals in a loop of their own."""
    functions = sass.functions(OBJECTS / "decode.cu.o", f"{type_name}Li{dim}E")
    ((kernel, code),) = functions.items()
    assert sass.inner_loop(code).hmma == dim // 2, kernel
    assert sass.inner_loop(code).others <= 330, kernel
