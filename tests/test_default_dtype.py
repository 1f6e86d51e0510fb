"""torch.set_default_dtype is the caller's business: operators give the same bits whatever it says."""

import contextlib

import pytest
import torch

import showo_ext
from showo_ext import OmniMask, reference
from showo_ext.testing import randint, randn, uniforms

MASK_ID = 99


@contextlib.contextmanager
def default_dtype(dtype):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def omni_attention(package):
    """Many rows, and the few rows against a long kv that have kernels of their own."""
    results = []
    for rows, columns in ((70, 70), (3, 600)):
        mask = OmniMask.causal(1, rows, kv_length=columns)
        leaves = [randn(1, 2, n, 32, seed=n).requires_grad_() for n in (rows, columns, columns)]
        arguments = {"deterministic": True} if package is showo_ext else {}
        out, lse = package.omni_attention(*leaves, mask, return_lse=True, **arguments)
        results += [out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)]
    return results


def norm(x, dims=32):
    return {"q_weight": x[:dims], "k_weight": x[dims : 2 * dims], "q_bias": x[2 * dims : 3 * dims]}


def rope_qkv(package):
    qkv, parameters = randn(1, 5, 192).requires_grad_(), randn(192, seed=1).requires_grad_()
    results = package.rope_qkv(qkv, torch.arange(5), num_heads=2, bias=parameters, **norm(parameters))
    return [*results, *torch.autograd.grad(sum(x.square().sum() for x in results), (qkv, parameters))]


def rope_qkv_into_cache(package):
    cache = tuple(torch.zeros((1, 2, 8, 32), dtype=torch.float32) for _ in range(2))
    arguments = {"num_heads": 2, **norm(randn(192, seed=1))}
    q = package.rope_qkv_into_cache(randn(1, 5, 192), torch.arange(5), cache, torch.arange(5) + 2, **arguments)
    return [q, *cache]


def rotary_tables(package):
    return package.rotary_tables(torch.arange(5), 32)


def lfq_encode(package):
    return [package.lfq_encode(randn(2, 5, 3, 4))]


def lfq_decode(package):
    return [package.lfq_decode(randint(0, 32, (2, 12)), 5, 3, 4)]


def vq_encode(package):
    return [package.vq_encode(randn(40, 8), randn(60, 8, seed=1))]


def codebook_lookup(package):
    codebook = randn(6, 8).requires_grad_()
    out = package.codebook_lookup(randint(0, 6, (3, 5)), codebook)
    return [out, *torch.autograd.grad(out.square().sum(), codebook)]


def sample_tokens(package):
    return package.sample_tokens(randn(3, 50), randn(3, 50, seed=1), guidance=1.5, top_k=9, top_p=0.9, seed=7)


def remask(package):
    known = randint(0, 2, (2, 9)).bool()
    return package.remask(randint(0, 50, (2, 9)), -uniforms(2, 9), known, 3, 0.7, MASK_ID, seed=7)


def resample(package):
    return package.resample(randn(2, 9, 50), torch.full((2, 9), MASK_ID), 3, MASK_ID, temperature=0.8, seed=7)


def corrupt_tokens(package):
    return package.corrupt_tokens(randint(0, 50, (2, 9)), 0.4, MASK_ID, seed=7)


CALLS = (
    omni_attention,
    rope_qkv,
    rope_qkv_into_cache,
    rotary_tables,
    lfq_encode,
    lfq_decode,
    vq_encode,
    codebook_lookup,
    sample_tokens,
    remask,
    resample,
    corrupt_tokens,
)


@pytest.fixture(params=["cpu", "emulated", "reference"])
def package(request):
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    return reference if request.param == "reference" else showo_ext


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_results_do_not_depend_on_it(package, call):
    expected = call(package)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with default_dtype(dtype):
            actual = call(package)
        torch.testing.assert_close(list(actual), list(expected), rtol=0, atol=0)


def test_every_function_is_called():
    functions = {name for name in showo_ext.__all__ if name.islower() and not name.startswith("_")} - {"build_info"}
    assert {call.__name__ for call in CALLS} == functions
