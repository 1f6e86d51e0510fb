"""Every operator on tensors that reach over more than 2^31 elements, where 32-bit offsets would wrap.

The tensors are views of address space that is never touched between their elements, so they take little memory.
"""

import math
import mmap

import pytest
import torch

from showo_ext import (
    OmniMask,
    codebook_lookup,
    lfq_encode,
    omni_attention,
    resample,
    rope_qkv,
    rope_qkv_into_cache,
    rotary_tables,
    sample_tokens,
    vq_encode,
)
from showo_ext.testing import randint, randn

MAP_NORESERVE = 0x4000  # of Linux; Python names it from 3.13 on
halves = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def spread(any_device, request):
    """Gives a copy of a tensor that along one dim reaches over more than 2^31 elements; the other dims lie within."""
    emulated = request.getfixturevalue("emulated") if request.node.callspec.params["any_device"] == "emulated" else None

    def copy(tensor, dim):
        order = [dim, *(d for d in range(tensor.dim()) if d != dim)]
        moved = tensor.permute(order).contiguous()
        stride = math.ceil(2**31 / (moved.shape[0] - 1) / 64) * 64  # rows stay where wide accesses can take them
        span = (moved.shape[0] - 1) * stride + moved[0].numel()
        if any_device == "cuda":
            memory = torch.empty(span, dtype=tensor.dtype, device=any_device)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
            memory = torch.frombuffer(mmap.mmap(-1, span * tensor.element_size(), flags=flags), dtype=tensor.dtype)
        view = memory.as_strided(moved.shape, (stride, *moved.stride()[1:]))
        view = view.permute([order.index(d) for d in range(tensor.dim())])
        view.copy_(tensor)
        if emulated is not None:
            emulated.register_sparse(view)
        return view

    return copy


@halves
@pytest.mark.parametrize("rows", [3, 40])  # on CUDA, few rows take kernels of their own
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "head", "row"])
def test_omni_attention(spread, any_device, dtype, rows, dim):
    mask = OmniMask.causal(2, rows, kv_length=50, device=any_device)
    tensors = [randn(2, 2, n, 64, dtype=dtype, device=any_device, seed=n) for n in (rows, 50)]
    tensors += [randn(2, 2, n, 64, dtype=dtype, device=any_device, seed=n + 1) for n in (50, rows)]

    def run(q, k, v, dout):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = omni_attention(q, k, v, mask, deterministic=True)
        return [out, *torch.autograd.grad(out, (q, k, v), dout)]

    for actual, expected in zip(run(*(spread(x, dim) for x in tensors)), run(*tensors)):
        assert torch.equal(actual, expected)


@halves
@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "row"])
def test_rope_qkv(spread, any_device, dtype, dim):
    qkv = randn(2, 3, 3 * 2 * 64, dtype=dtype, device=any_device)
    tables = rotary_tables(randint(0, 900, (2, 3), device=any_device), 64)
    cotangents = [randn(2, 2, 3, 64, dtype=dtype, device=any_device, seed=s) for s in range(3)]
    caches = tuple(torch.zeros(2, 2, 4, 64, dtype=dtype, device=any_device) for _ in range(2))

    def run(qkv, cotangents, caches):
        qkv = qkv.detach().requires_grad_()
        out = rope_qkv(qkv, tables, num_heads=2)
        (gradient,) = torch.autograd.grad(out, qkv, cotangents)
        with torch.no_grad():
            rope_qkv_into_cache(qkv, tables, caches, torch.tensor([3, 0, 1], device=any_device), num_heads=2)
        return [*out, gradient, *caches]

    far = (spread(qkv, dim), [spread(x, 2 * dim) for x in cotangents], tuple(spread(x, 2 * dim) for x in caches))
    for actual, expected in zip(run(*far), run(qkv, cotangents, caches)):
        assert torch.equal(actual, expected)


@halves
def test_codebook(spread, any_device, dtype):
    z, rows, codebook = (randn(*shape, dtype=dtype, device=any_device) for shape in ((2, 13, 2, 8), (3, 64), (5, 64)))
    ids = randint(0, 5, (3,), device=any_device)
    for dim in range(3):
        assert torch.equal(lfq_encode(spread(z, dim)), lfq_encode(z))
    assert torch.equal(vq_encode(spread(rows, 0), spread(codebook, 0)), vq_encode(rows, codebook))
    assert torch.equal(codebook_lookup(ids, spread(codebook, 0)), codebook[ids])


@halves
@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "place"])
def test_resample(spread, any_device, dtype, dim):
    logits, uncond = (randn(2, 3, 64, dtype=dtype, device=any_device, seed=s) for s in range(2))
    ids = torch.full((2, 3), 99, device=any_device)

    def run(logits, uncond):
        drawn = {"uncond": uncond, "guidance": 1.5, "seed": 1}
        return [*sample_tokens(logits, **drawn), *resample(logits, ids, 1, 99, **drawn)]

    for actual, expected in zip(run(spread(logits, dim), spread(uncond, dim)), run(logits, uncond)):
        assert torch.equal(actual, expected)
