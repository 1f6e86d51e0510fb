"""The CUDA kernels of the codebook: on a GPU if there is one, else, where it is built, on the PTX emulator.

The operators' meaning is tested in test_lfq.py and test_vq.py; here it is what is particular to these kernels:
vectorised and plain accesses, tile edges, ids that cannot be checked, order of summation.
"""

import pytest
import torch

from showo_ext import codebook_lookup, lfq_decode, lfq_encode, reference, vq_encode
from showo_ext.testing import FLOAT_DTYPES, assert_within_budget, inside_larger, randint, randn, with_special_values

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("bits", [1, 13, 32, 33, 62])
@pytest.mark.parametrize("size", [(4, 8), (3, 5), (1, 1)])
def test_lfq_widths(device, dtype, bits, size):
    z = randn(2, bits, *size, dtype=dtype, device=device)
    ids = lfq_encode(z, offset=-3)
    assert torch.equal(ids, reference.lfq_encode(z, offset=-3))
    assert torch.equal(lfq_decode(ids, bits, *size, offset=-3, dtype=dtype), torch.where(z > 0, 1.0, -1.0).to(dtype))


@dtypes
@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_lfq_misaligned_and_strided(device, dtype, offset):
    z = with_special_values(randn(2, 5, 3, 16, dtype=dtype, device=device))
    for last_dim_contiguous in (True, False):
        view = inside_larger(z, offset=offset, pad=8, last_dim_contiguous=last_dim_contiguous)
        assert torch.equal(lfq_encode(view), reference.lfq_encode(z))
    assert torch.equal(lfq_encode(z.to(memory_format=torch.channels_last)), reference.lfq_encode(z))


@dtypes
def test_lfq_special_values(device, dtype):
    z = torch.tensor([0.0, -0.0, INF, -INF, NAN, -NAN, 1e-7, -1e-7], dtype=dtype, device=device).view(1, 1, 1, 8)
    assert lfq_encode(z).tolist() == [[0, 0, 1, 0, 0, 0, 1, 0]]


@dtypes
def test_lfq_decodes_an_id_out_of_range_to_nan(device, dtype):
    ids = torch.tensor([[0, 7, 8, -1, 2**62, -(2**63), 3, 2]], device=device)
    z = lfq_decode(ids, 3, 2, 4, dtype=dtype).flatten(2)
    valid = [0, 1, 6, 7]
    assert torch.equal(z[:, :, valid], reference.lfq_decode(ids[:, valid], 3, 2, 2, dtype=dtype).flatten(2))
    assert bool(z[:, :, 2:6].isnan().all())


@pytest.mark.parametrize("rows", [1, 63, 64, 65])
@pytest.mark.parametrize(("codes", "dim"), [(1, 1), (63, 15), (64, 16), (65, 17), (129, 33)])
def test_vq_tile_edges(device, rows, codes, dim):
    z, codebook = randn(rows, dim, device=device), randn(codes, dim, seed=1, device=device)
    assert torch.equal(vq_encode(z, codebook), reference.vq_encode(z.double(), codebook.double()))


@dtypes
def test_vq_ties_and_special_values(device, dtype):
    entries = randn(50, 9, dtype=dtype, device=device)
    assert torch.equal(vq_encode(entries, entries.repeat(3, 1)), torch.arange(50, device=device))
    codebook = torch.tensor([[NAN, 0.0], [INF, 0.0], [5.0, 5.0], [1.0, 1.0]], dtype=dtype, device=device)
    z = torch.tensor([[0.0, 0.0], [5.0, 4.0], [NAN, 0.0], [INF, 0.0], [0.0, -INF]], dtype=dtype, device=device)
    assert vq_encode(z, codebook).tolist() == [3, 2, 0, 0, 0]


def test_vq_close_entries_far_from_the_origin(device):
    z, codebook = 1000 + randn(20, 8, device=device), 1000 + randn(100, 8, seed=1, device=device)
    assert torch.equal(vq_encode(z, codebook), reference.vq_encode(z.double(), codebook.double()))


@dtypes
@pytest.mark.parametrize("dim", [1, 2, 8, 33, 40])
def test_lookup_words_of_every_width(device, dtype, dim):
    codebook, ids = randn(30, dim, dtype=dtype, device=device), randint(0, 30, (5, 7), device=device)
    assert torch.equal(codebook_lookup(ids, codebook), codebook[ids])
    for offset in (1, 2, 4):
        assert torch.equal(codebook_lookup(ids, inside_larger(codebook, offset=offset, pad=4)), codebook[ids])


@dtypes
def test_lookup_of_an_id_out_of_range_is_nan_without_gradient(device, dtype):
    codebook = randn(4, 6, dtype=dtype, device=device).requires_grad_()
    ids = torch.tensor([3, 4, -1, 2**62, 3], device=device)
    out = codebook_lookup(ids, codebook)
    assert torch.equal(out[[0, 4]], codebook[[3, 3]])
    assert bool(out[1:4].isnan().all())
    (gradient,) = torch.autograd.grad(out, codebook, torch.ones_like(out))
    assert gradient.tolist() == [[0.0] * 6] * 3 + [[2.0] * 6]


@dtypes
def test_lookup_gradient_is_accurate_and_repeatable(device, dtype):
    codebook = randn(9, 37, dtype=dtype, device=device).requires_grad_()
    ids = randint(0, 7, (300,), device=device)  # entries 7 and 8 are never used
    cotangent = randn(300, 37, dtype=dtype, seed=1, device=device)
    first, second = (torch.autograd.grad(codebook_lookup(ids, codebook), codebook, cotangent)[0] for _ in range(2))
    oracle = torch.zeros(9, 37, dtype=torch.float64, device=device).index_add_(0, ids, cotangent.double())
    (peer,) = torch.autograd.grad(codebook[ids], codebook, cotangent)
    assert torch.equal(first, second)
    assert_within_budget(first, oracle, peer, what="gradient")
