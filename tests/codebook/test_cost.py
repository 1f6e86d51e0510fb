"""What the codebook's other CUDA kernels cost: nothing crosses the bus that need not."""

import pytest
import torch

from showo_ext import codebook_lookup, lfq_decode, lfq_encode
from showo_ext.testing import FLOAT_DTYPES, randint, randn

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def sectors(device, kernel: str) -> int:
    """32-byte sectors of the only launch of a kernel."""
    (record,) = [r for r in device.records() if kernel in r.kernel]
    assert record.bank_conflicts == 0
    assert all(tensor["never_written"] == 0 for tensor in record.tensors)
    return record.global_sectors[0]


@dtypes
@pytest.mark.parametrize("bits", [13, 40])
def test_lfq_traffic(emulated, dtype, bits):
    z = randn(2, bits, 16, 16, dtype=dtype)
    ids = lfq_encode(z)
    lfq_decode(ids, bits, 16, 16, dtype=dtype)
    least = (z.nbytes + ids.nbytes) // 32
    assert sectors(emulated, "lfq_encode") == least
    assert sectors(emulated, "lfq_decode") == least


@dtypes
@pytest.mark.parametrize("dim", [8, 16, 64, 256])
def test_lookup_traffic(emulated, dtype, dim):
    codebook, ids = randn(100, dim, dtype=dtype), randint(0, 100, (256,))
    out = codebook_lookup(ids, codebook)
    row = max(32, out[0].nbytes)  # a shorter one is fetched in a whole sector
    assert sectors(emulated, "lookup_forward") <= 1.02 * (256 * row + out.nbytes + ids.nbytes) // 32


@dtypes
@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("per_entry", [1, 8, 64])
def test_lookup_gradient_traffic(emulated, dtype, dim, per_entry):
    """2% and, for each entry, two sectors: one warp an entry reads its two bounds and its positions in whole ones."""
    codes = 256 // per_entry
    codebook = randn(codes, dim, dtype=dtype).requires_grad_()
    ids = torch.arange(codes).repeat(per_entry)
    out = codebook_lookup(ids, codebook)
    (gradient,) = torch.autograd.grad(out, codebook, randn(*out.shape, dtype=dtype, seed=1))
    least = (out.nbytes + gradient.nbytes + ids.nbytes + 8 * codes) / 32
    assert sectors(emulated, "lookup_backward") <= 1.02 * least + 2 * codes
