"""omni_attention's CUDA backward: on a GPU if there is one, else, where it is built, on the PTX emulator.

The forward pass is the reference formula: what the kernels get is `out` rounded to the inputs' dtype, and lse.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask, reference
from showo_ext.testing import FLOAT_DTYPES, assert_within_budget, inside_larger, randint, randn

OPS = torch.ops.showo_ext
HALVES = (torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
dims = pytest.mark.parametrize("dim", [32, 64, 96, 128])


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "emulated"])
def device(request):
    """The device to put tensors on; inside the test its CUDA kernels run."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        yield "cuda"
        return
    emulated = pytest.importorskip("tests.ptx.emulated")
    if emulated.module_path() is None:
        pytest.skip("the PTX emulator is not built; `make emulator` builds it")
    with emulated.emulated_device() as module:
        request.node.emulated = module
        yield "cpu"


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


def gradients(q, k, v, dout, dlse, mask, scale, dtype):
    """out, lse and the gradients of the plain formula in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out, lse = reference.omni_attention(*leaves, mask, scale=scale, return_lse=True)
    loss = (out * dout.to(dtype)).sum()
    if dlse is not None:
        loss = loss + (lse * dlse.to(lse.dtype)).masked_fill(lse.isinf(), 0.0).sum()
    return out.detach(), lse.detach(), torch.autograd.grad(loss, leaves)


def backward(q, k, v, dout, dlse, mask, out, lse, scale, deterministic=False):
    intervals = mask.intervals.expand(q.size(0), -1, -1, -1)
    return OPS.omni_attention_backward(
        dout, dlse, q, k, v, intervals, mask.block_states(), out, lse, scale, deterministic
    )


def check(inputs, mask, *, scale=None, use_dlse=True, deterministic=False, arrange=lambda x: x):
    q, k, v, dout, dlse = inputs
    dlse = dlse if use_dlse else None
    scale = q.size(-1) ** -0.5 if scale is None else scale
    out, lse, oracle = gradients(q, k, v, dout, dlse, mask, scale, torch.float64)
    _, _, peer = gradients(q, k, v, dout, dlse, mask, scale, q.dtype)
    saved = out.to(q.dtype), lse.float()
    q, k, v, dout = (arrange(x) for x in (q, k, v, dout))
    actual = backward(q, k, v, dout, dlse, mask, *saved, scale, deterministic)
    for name, a, o, p, x in zip(("dq", "dk", "dv"), actual, oracle, peer, (q, k, v), strict=True):
        assert (a.dtype, a.shape) == (x.dtype, x.shape), name
        assert_within_budget(a, o, p, what=name, factor=1.5)
    return actual


# ---- values ----------------------------------------------------------------------------------------------------------


@dims
@dtypes
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_instantiation(device, dtype, dim, deterministic):
    mask = random_mask(1, 90, 150, 2, seed=dim, device=device)
    check(operands(1, 2, 1, mask, dim, dtype, device), mask, deterministic=deterministic)
