"""The softcap of omni_attention's CUDA kernels: on a GPU if there is one, else, where it is built, on the PTX emulator.

test_softcap.py has what does not depend on the device; the searches of test_cuda.py, test_decode_cuda.py and
test_backward_cuda.py draw a softcap too.
"""

import pytest
import torch

from showo_ext import OmniMask, flash_attn_func, omni_attention, reference
from showo_ext.ops._mask_plan import make_plan, plan_of
from showo_ext.testing import FLOAT_DTYPES, assert_within_budget, poisoned, randn
from tests.omni_attention import test_backward_cuda, test_cuda, test_decode_cuda
from tests.omni_attention.common import assert_attention, operands

OPS = torch.ops.showo_ext
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])


def a_softcap(dim, dtype, bend=50.0):
    """One of three: scores of up to half `bend` saturate, they bend, or they stay as they are; in 16 bits the last
    takes a tanh of its own. Neighbouring head sizes and dtypes get different ones."""
    return (bend / 16, bend, 1000.0)[(dim // 32 + FLOAT_DTYPES.index(dtype)) % 3]


# ---- values ----------------------------------------------------------------------------------------------------------


@dtypes
@dims
def test_every_forward_kernel(device, dim, dtype):
    """Several intervals a row, rows of one column and of none; grouped heads; a negative scale."""
    mask = test_cuda.random_mask(1, 100, 140, 2, seed=dim, device=device)
    q, k, v = operands(mask, dim, dtype, heads=3, seed=dim)
    test_cuda.check(q, k, v, mask, scale=-1.0 if dim == 64 else 1.0, softcap=a_softcap(dim, dtype))


@dtypes
@dims
@pytest.mark.parametrize("splits", [1, 3])
def test_every_decode_kernel(device, dim, dtype, splits):
    mask = test_decode_cuda.random_mask(2, 5, 300, 2, seed=dim, device=device)
    q, k, v = operands(mask, dim, dtype, heads=6, kv_heads=2, seed=dim)
    softcap = a_softcap(dim, dtype)
    test_decode_cuda.check(q, k, v, mask, scale=-1.0 if dim == 64 else 1.0, softcap=softcap, splits=splits)


@dtypes
@dims
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_backward_kernel(device, dim, dtype, deterministic):
    """The largest scores are some 4. Larger ones would make lse large, whose rounding in fp32 then decides.

    In fp32 torch's tanh is right to a rounding, while what PTX promises of ex2 and rcp makes 2^-21.
    """
    mask = test_backward_cuda.random_mask(1, 70, 80, 2, seed=dim, device=device)
    inputs = test_backward_cuda.operands(1, 2, 1, mask, dim, dtype, device, seed=dim)
    softcap = a_softcap(dim + 32 * deterministic, dtype, bend=8.0)
    factor = 2.0 if dtype == torch.float32 else 1.5
    test_backward_cuda.check(inputs, mask, softcap=softcap, deterministic=deterministic, factor=factor)


@dtypes
@pytest.mark.parametrize("rows", [5, 70])  # those of the split-KV kernels, and the others
def test_the_operator_with_its_gradients(device, dtype, rows):
    """Through autograd, with saved outputs that are the kernels' own; a batch of two masks of three intervals."""
    mask = test_cuda.random_mask(2, rows, 90, 3, seed=rows, device=device)
    leaves = [x.requires_grad_() for x in operands(mask, 64, dtype, heads=2, seed=rows)]
    out, lse = omni_attention(*leaves, mask, scale=0.7, softcap=6.0, return_lse=True)
    assert_attention(out.detach(), lse.detach(), *(x.detach() for x in leaves), mask, 0.7, softcap=6.0, rms=True)
    dout = randn(*out.shape, dtype=dtype, seed=9, device=device)
    actual = torch.autograd.grad(out, leaves, dout)
    expected = []
    for wide in (torch.float64, dtype):
        inputs = [x.detach().to(wide).requires_grad_() for x in leaves]
        result = reference.omni_attention(*inputs, mask, scale=0.7, softcap=6.0)
        expected.append(torch.autograd.grad(result, inputs, dout.to(wide)))
    factor = 2.0 if dtype == torch.float32 else 1.5  # see test_decode_cuda.test_backward
    for name, a, o, p in zip(("dq", "dk", "dv"), actual, *expected, strict=True):
        assert_within_budget(a, o, p, what=name, factor=factor, rms=True)


@dtypes
@pytest.mark.parametrize("rows", [2, 40])
def test_scores_of_any_size(device, dtype, rows):
    """Infinite scores end at the cap, NaN stays in its row, and masked columns stay out, whatever they hold."""
    q, k, v = (randn(1, 1, n, 32, dtype=dtype, seed=n, device=device) for n in (rows, 90, 91))
    v = v[:, :, :90]
    stops = torch.arange(rows, device=device).add(40).int()
    mask = OmniMask(torch.stack([stops - 20, stops], -1).view(1, rows, 1, 2), 90)
    q[0, 0, 0] *= 1e4
    k[0, 0, 85:], v[0, 0, 85:] = float("nan"), float("nan")
    k[0, 0, 19 + rows, 0], q[0, 0, :, 0] = float("inf"), 1.0
    q[0, 0, 1, 3] = float("nan")
    out, lse = omni_attention(q, k, v, mask, softcap=3.0, return_lse=True)
    hidden = [x.double().masked_fill(x.isnan() & (x is not q), 0.0) for x in (q, k, v)]
    expected, expected_lse = reference.omni_attention(*hidden, mask, softcap=3.0, return_lse=True)
    band = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for actual, oracle, allowed in ((out, expected, band), (lse, expected_lse, 1e-5)):
        assert torch.equal(actual[0, 0].isnan().nonzero()[:, 0].unique().cpu(), torch.tensor([1]))
        torch.testing.assert_close(actual.double(), oracle, rtol=allowed, atol=allowed, equal_nan=True)


@pytest.mark.parametrize("rows", [3, 20])
def test_a_capped_score_has_the_digits_of_tanh(device, rows):
    """lse of a single column is its score: relative errors from scores that round to zero to those at the cap."""
    x = torch.cat([torch.logspace(-30, 4, 150, dtype=torch.float32), torch.tensor([0.0])])
    x = torch.cat([x, -x])
    x = torch.nn.functional.pad(x, (0, -x.numel() % rows)).view(-1, 1, rows, 1).to(device)
    q = torch.nn.functional.pad(x, (0, 31))
    k = torch.nn.functional.pad(torch.ones(x.size(0), 1, 1, 1, device=device), (0, 31))
    mask = OmniMask.full(1, rows, kv_length=1, device=device)
    _, lse = omni_attention(q, k, k, mask, scale=1.0, softcap=20.0, return_lse=True)
    expected = (x.double() / 20).tanh().squeeze(-1) * 20
    error = (lse - expected).abs() - 2**-21 * expected.abs()
    # The bound of a row is that of its score exactly; what lg2 makes of the sum, 1, is off by 2^-22.
    assert float(error.max()) <= 2**-22, float(error.max())


@dtypes
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("softcap", [2.0**-126, 2.0**127])
def test_the_smallest_and_the_largest_softcap(device, softcap, rows, dtype):
    """The one makes all scores equal, the other leaves them as they are."""
    mask = OmniMask.causal(1, rows, kv_length=70, device=device)
    tensors = operands(mask, 64, dtype, heads=2)
    expected = reference.omni_attention(*(x.double() for x in tensors), mask, softcap=softcap)
    out = omni_attention(*tensors, mask, softcap=softcap)
    band = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=band)


# ---- what is written, read and launched ------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize(("rows", "columns"), [(5, 100), (5, 600), (70, 100)])
def test_results_are_written_whole(emulated, dtype, rows, columns):
    """The emulator reports what is read and was never written; here, what of the results was not written."""
    mask = test_cuda.random_mask(1, rows, columns, 2, seed=rows)
    leaves = [x.requires_grad_() for x in operands(mask, 32, dtype, heads=2)]
    out = omni_attention(*leaves, mask, softcap=5.0, deterministic=columns == 600)
    last = [emulated.records()[-1]]
    out.backward(torch.ones_like(out))
    for record in [*last, emulated.records()[-1]]:
        assert all(tensor["never_written"] == 0 for tensor in record.tensors), record.kernel


def test_the_large_tile_has_no_softcap(emulated):
    mask = OmniMask.causal(1, 130)
    q = operands(mask, 32, torch.bfloat16)
    large = torch.empty(1, 109, 130, 32, dtype=torch.bfloat16)
    assert [plan_of(mask, large, trained=False, capped=capped).tile_rows for capped in (False, True)] == [128, 64]
    with pytest.raises(ValueError, match=r"softcap, .* take tiles of 64 rows, got 128"):
        OPS.omni_attention_forward(*q, *make_plan(mask, 128), 0.2, False, 5.0)


@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.bfloat16), (40, torch.float32)])
def test_flash_attn(device, dim, dtype):
    """A head size with a kernel and one that is padded: of zeros, tanh makes zeros."""
    q, k, v = (randn(1, n, 2, dim, dtype=dtype, seed=n, device=device) for n in (30, 50, 51))
    v = v[:, :50]
    out = flash_attn_func(q, k, v, causal=True, softcap=2.0)
    mask = OmniMask.causal(1, 30, kv_length=50, device=device)
    expected, peer = (
        reference.omni_attention(*(x.transpose(1, 2).to(wide) for x in (q, k, v)), mask, softcap=2.0).transpose(1, 2)
        for wide in (torch.float64, dtype)
    )
    assert_within_budget(out, expected, peer, rms=True)


@pytest.mark.gpu
def test_no_wait_and_one_graph():
    """A call with a softcap can be captured in a CUDA graph, and the graph computes anew."""
    mask = OmniMask.causal(1, 200, device="cuda")
    q, k, v = operands(mask, 64, torch.bfloat16, heads=4)
    expected = omni_attention(q, k, v, mask, softcap=5.0)
    out = poisoned(expected.shape, dtype=expected.dtype, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(omni_attention(q, k, v, mask, softcap=5.0))
    graph.replay()
    assert torch.equal(out, expected)
