"""rope_qkv's CUDA kernels: what they move, how they use shared memory, what ptxas made of them.

The operator's meaning is tested in test_rope_qkv.py. Counters come from the PTX emulator.
"""

import pytest
import torch

from showo_ext import rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.testing import FLOAT_DTYPES, randint, randn
from tests.ptx import sass
from tests.ptx.emulated import emulated_device, module_path

BF16 = torch.bfloat16
OBJECTS = sass.OBJECTS / "rope_qkv"
needs_emulator = pytest.mark.skipif(module_path() is None, reason="the PTX emulator is not built; `make emulator`")
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])
NORM = ("q_weight", "q_bias", "k_weight", "k_bias")


def problem(batch, length, heads, kv_heads, dim, rotary_dim, dtype, parameters=None):
    """qkv, tables, keyword arguments."""
    qkv = randn(batch, length, (heads + 2 * kv_heads) * dim, dtype=dtype)
    arguments = {"num_heads": heads, "num_kv_heads": kv_heads}
    arguments["bias"] = randn(qkv.shape[2], dtype=parameters or dtype, seed=1)
    arguments |= {name: randn(dim, seed=2 + i) for i, name in enumerate(NORM)}
    return qkv, rotary_tables(randint(0, 1200, (batch, length)), rotary_dim), arguments


# ---- traffic ---------------------------------------------------------------------------------------------------------


def sectors(*tensors):
    return sum(x.numel() * x.element_size() for x in tensors) // 32


def launch(form, qkv, tables, arguments):
    """Counters of one launch, and the sectors of the big tensors: every element read once or written once."""
    heads, kv_heads = arguments["num_heads"], arguments["num_kv_heads"]
    normed = qkv[..., : (heads + kv_heads) * (qkv.shape[2] // (heads + 2 * kv_heads))]
    with emulated_device() as device:
        if form == "forward":
            least = sectors(qkv, *rope_qkv(qkv, tables, **arguments))
        elif form == "cache":
            shape = (qkv.shape[0], kv_heads, qkv.shape[1] + 3, qkv.shape[2] // (heads + 2 * kv_heads))
            cache = (torch.zeros(shape, dtype=qkv.dtype), torch.zeros(shape, dtype=qkv.dtype))
            slots = torch.randperm(shape[2], generator=torch.Generator().manual_seed(0))[: qkv.shape[1]]
            rope_qkv_into_cache(qkv, tables, cache, slots, **arguments)
            least = sectors(qkv, qkv)
        else:
            leaves = [x.requires_grad_() for x in (qkv, *arguments.values()) if torch.is_tensor(x)]
            out = rope_qkv(qkv, tables, **arguments)
            torch.autograd.grad(out, leaves, [torch.ones_like(x) for x in out])
            least = sectors(*out, normed, qkv)
        counters = device.records()[-1]
    assert f"rope_qkv_{'backward' if form == 'backward' else 'forward'}_kernel" in counters.kernel
    return counters, least


def shared_between_blocks(form, rows, chunks):
    """Sectors beyond those of the big tensors at 32 + 32 + 32 heads of 64 in bf16, which are three splits."""
    tables = rows * 2 * 4  # 16 cosines and 16 sines a row, for the splits with q and with k
    norm = chunks * 3 * 32
    if form == "backward":
        return tables + 2 * norm + chunks * (64 * 64 * 2 + 96 * 64 * 4) // 32  # bias of q and k; sums of all heads
    return tables + norm + chunks * 96 * 64 * 2 // 32


@needs_emulator
@pytest.mark.parametrize("form", ["forward", "cache", "backward"])
def test_every_sector_is_accounted_for(form):
    """Show-o's heads, two samples: what is not the big tensors is parameters, tables and sums, and is exact."""
    counters, least = launch(form, *problem(2, 387, 32, 32, 64, 32, BF16))
    moved, coalesced = counters.global_sectors
    chunks = counters.grid[0]
    expected = least + shared_between_blocks(form, 774, chunks)
    if form == "cache":  # slots, 8 bytes a row for the splits with k and with v; they may begin inside a sector
        assert 0 <= moved - expected <= 2 * (774 // 4 + 2 * chunks)
        assert moved - coalesced <= 2 * chunks
    else:
        assert moved == coalesced == expected
    assert counters.bank_conflicts == 0


@needs_emulator
@pytest.mark.kernels
@pytest.mark.parametrize("form", ["forward", "cache", "backward"])
def test_training_batch_moves_two_percent_more_than_it_must(form):
    """29 samples of 387 rows, one GPU's share in stage 1. Parameters, tables, slots and sums count as excess."""
    counters, least = launch(form, *problem(29, 387, 32, 32, 64, 32, BF16))
    assert counters.global_sectors[0] <= 1.02 * least
    assert counters.bank_conflicts == 0


def check_access(counters, odd_rows=False):
    assert counters.bank_conflicts == 0
    moved, coalesced = counters.global_sectors
    # Rows of a table that are no multiple of 32 bytes begin inside a sector: up to two more for each row and access.
    assert moved <= coalesced * (1.01 if odd_rows else 1)


@needs_emulator
@dtypes
@dims
@pytest.mark.parametrize("form", ["forward", "backward"])
def test_no_conflicts_and_whole_sectors(form, dtype, dim):
    # Groups of q, k and v heads meet in one warp; halves that are vectors, half vectors, and neither; fp32 bias
    for rotary_dim in (dim // 2, dim, dim // 2 - 4, 22, 0) if dim == 64 else (dim // 2, 22):
        counters, _ = launch(form, *problem(2, 9, 6, 3, dim, rotary_dim, dtype, parameters=torch.float32))
        check_access(counters, odd_rows=rotary_dim // 2 % 8 != 0)


# ---- what ptxas made of it -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_registers(name):
    kernels = sass.resources(OBJECTS / f"{name}.cu.o")
    assert len(kernels) == 3 * 4 * 2  # dtypes, head sizes, vectors or single elements
    for kernel, used in kernels.items():
        if name == "forward" or "Li96E" not in kernel:
            assert used.registers <= 128, kernel  # two thread blocks a multiprocessor
