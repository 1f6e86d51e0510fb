"""What the rope_qkv kernels cost, counted by the emulator: global traffic and bank conflicts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.ptx import emulated  # noqa: E402

if emulated.module_path() is None:
    pytest.skip("_C_emulated is not built (it needs nvcc); `make emulator` builds it", allow_module_level=True)

import showo_ext  # noqa: E402
from showo_ext.testing import randn  # noqa: E402

HEADS, LENGTH = 32, 144  # 96 heads in three splits; two rows to a chunk


def run(dtype: torch.dtype, dim: int, backward: bool) -> emulated.Counters:
    qkv = randn(1, LENGTH, 3 * HEADS * dim, dtype=dtype).requires_grad_(backward)
    parameters = {n: randn(dim, seed=1) for n in ("q_weight", "q_bias", "k_weight", "k_bias")}
    bias = randn(3 * HEADS * dim, dtype=dtype, seed=2)
    rotary = showo_ext.rotary_tables(torch.arange(LENGTH), dim // 2)
    with emulated.emulated_device() as device:
        out = showo_ext.rope_qkv(qkv, rotary, num_heads=HEADS, bias=bias, **parameters)
        if backward:
            torch.autograd.grad(out, qkv, [randn(*x.shape, dtype=dtype) for x in out])
        return device.records()[-1]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_global_traffic(dtype: torch.dtype, dim: int, backward: bool) -> None:
    counters = run(dtype, dim, backward)
    assert counters.bank_conflicts == 0
    size = dtype.itemsize
    chunks, width = 72, 3 * HEADS * dim
    elements = LENGTH * width * size
    # v needs no qkv in backward; the tables are read by the two splits that turn heads.
    streams = elements * (2 + 2 / 3 if backward else 2)
    tables = 2 * LENGTH * (dim // 2) * 4
    # Per chunk and split: the bias (in backward it is read too, and its partial sum written), norm vectors.
    bias = chunks * width * (size + 4 * backward)
    norm = chunks * (2 * 4 * dim * 4 + 3 * 4 * dim * 4 * backward)
    moved = counters.global_sectors[0] * 32
    assert moved <= streams + tables + bias + norm
    # With 64 rows to a chunk, as from 4608 rows on, all that is not a stream comes to less than 2% of it.
    if not backward:
        rows = 4608
        extra = rows // 64 * (width * size + 8 * dim * 4) + rows * (dim // 2) * 4
        assert extra < 0.02 * rows * width * size * 2
