"""sample_tokens as a torch operator: registration, compilation, memory, empty and bad input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import showo_ext
from showo_ext import reference, sample_tokens
from showo_ext._native import launch
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    available_isas,
    guarded,
    poisoned,
    randn,
    uniforms,
    use_isa,
    use_threads,
)

INF = math.inf


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 2**70 + 3, np.int64(-5), np.uint64(2**63 + 1)])
def test_a_seed_is_any_integer_modulo_two_to_64(seed):
    logits = randn(3, 4, 20)
    wrapped = torch.tensor([int(seed) % 2**64], dtype=torch.uint64).view(torch.int64)[0]
    for function in (sample_tokens, reference.sample_tokens):
        assert torch.equal(function(logits, seed=seed)[0], sample_tokens(logits, seed=wrapped)[0])


def test_numbers_may_be_numpys():
    logits = randn(3, 4, 20)
    plain = sample_tokens(logits, logits, guidance=2.0, temperature=0.5, top_k=7, top_p=0.75, seed=1, step=2)
    numbers = {
        "guidance": np.float32(2),
        "temperature": np.float16(0.5),
        "top_k": np.int8(7),
        "top_p": np.float64(0.75),
    }
    ours = sample_tokens(logits, logits, **numbers, seed=np.int32(1), step=np.uint8(2))
    assert all(map(torch.equal, ours, plain))


# ---------------------------------------------------------------- as a torch operator


def test_opcheck():
    logits, noise, seeds = randn(2, 3, 20), uniforms(2, 3, 20), torch.tensor([1, 2])
    one = torch.tensor(1.0, dtype=torch.float64)
    op = torch.ops.showo_ext.sample_tokens.default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration")
    for arguments in (
        (logits, None, 5, None, 0, None, None, 0.0, None, None, 1.0, None, 0, None, 1.0, None),
        (logits, -logits, 0, seeds, 0, torch.tensor(3), noise, 1.5, None, None, 0.5, None, 4, None, 0.9, None),
        (logits, -logits, 0, seeds, 0, None, None, 1.0, one, None, 1.0, one, 0, torch.tensor(3), 1.0, one),
        (logits[0, 0].bfloat16(), None, 5, None, 2, None, None, 0.0, None, None, 0.0, None, 0, None, 1.0, None),
        (logits, -logits[0], 5, None, 0, None, None, 0.0, None, one.expand(2), 1.0, None, 0, None, 1.0, None),
    ):
        torch.library.opcheck(op, arguments, test_utils=tests)


def test_compiles():
    cond, uncond = randn(2, 3, 40), randn(2, 3, 40, seed=1)
    assert_compiles(lambda c, u: sample_tokens(c, u, guidance=2.0, seed=3, step=1), cond, uncond)
    assert_compiles(lambda c, s: sample_tokens(c * 2, seed=s, step=s[0], top_k=4), cond, torch.tensor([5, 6]))


def test_compiles_once_for_many_steps():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=None)
    def run(logits, seed, step):
        return sample_tokens(logits, seed=seed, step=step)[0]

    logits = randn(2, 3, 40)
    for step in range(5):
        assert torch.equal(run(logits, 10 + step, step), sample_tokens(logits, seed=10 + step, step=step)[0])
    assert counter.frame_count <= 2
    seed = 2**63 + 1  # no int64, and no symbolic integer either
    assert torch.equal(run(logits, seed, 0), sample_tokens(logits, seed=seed)[0])


def test_not_differentiable_but_accepts_parameters():
    logits = randn(2, 9).requires_grad_()
    ids, logprob = sample_tokens(logits, logits, guidance=1.0, seed=0)
    assert not ids.requires_grad
    assert not logprob.requires_grad


def test_autocast_and_meta():
    logits = randn(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sample_tokens(logits, seed=0)
    assert all(map(torch.equal, inside, sample_tokens(logits, seed=0)))
    ids, logprob = sample_tokens(torch.empty(4, 5, 6, device="meta"), seed=0)
    assert (ids.shape, ids.dtype, logprob.dtype) == ((4, 5), torch.int64, torch.float32)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("isa", available_isas())
def test_writes_inside_and_reads_inside(dtype, isa):
    """Guards around every tensor, odd sizes, unaligned rows; outputs start as poison."""
    with use_isa(isa):
        for vocab in (1, 5, 33, 1029):
            cond = guarded(randn(3, vocab, dtype=dtype))
            noise = guarded(uniforms(3, vocab))
            ids, logprob = guarded(poisoned((3,), dtype=torch.int64)), guarded(poisoned((3,)))
            with use_threads(2):
                launch(
                    "sample_tokens", cond.tensor,
                    ids=ids.tensor, logprob=logprob.tensor, cond=cond.tensor, uncond=None,
                    dtype=dtype, batch=3, length=1, vocab=vocab, cond_stride_b=vocab, cond_stride_n=0,
                    uncond_stride_b=0, uncond_stride_n=0, weights=None, weights_stride_b=0, conditions=0,
                    cond_stride_k=0, guidance=0.0, guidance_data=None, temperature=1.0,
                    temperature_data=None, top_k_data=None, top_p_data=None, top_k=3,
                    top_p=0.9, noise=noise.tensor, seed=0, seed_data=None, seed_stride=0, step=0, step_data=None,
                )  # fmt: skip
            for guard in (cond, noise, ids, logprob):
                guard.check()
            assert ((ids.tensor >= 0) & (ids.tensor < vocab)).all()
            assert logprob.tensor.isfinite().all()


# ---------------------------------------------------------------- empty and bad input


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (2, 0, 5), (0, 3, 0), (2, 0, 0)])
def test_empty(shape):
    for kwargs in ({}, {"noise": torch.empty(shape)}, {"top_k": 2, "temperature": 0.0}):
        ids, logprob = sample_tokens(torch.empty(shape), seed=0, **kwargs)
        assert ids.shape == logprob.shape == shape[:-1]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("place", [0, 31, 38, 1024, 1100])
def test_values_that_are_refused(isa, place):
    def changed(value, base=None):
        out = torch.zeros(2, 3, 1101) if base is None else base.clone()
        out[1, 2, place] = value
        return out

    zeros, half = torch.zeros(2, 3, 1101), torch.full((2, 3, 1101), 0.5)
    run = partial(sample_tokens, seed=0)
    with use_isa(isa):
        for kwargs in ({}, {"top_k": 5}, {"temperature": 0.0}):
            with pytest.raises(ValueError, match=rf"logits has NaN, expected none: row 1, position 2, index {place}"):
                run(changed(math.nan), **kwargs)
            with pytest.raises(ValueError, match=r"logits has \+inf"):
                run(changed(INF), **kwargs)
        for bad in (math.nan, INF):
            with pytest.raises(ValueError, match="logits has"):
                run(zeros, changed(bad), guidance=1.0)
            with pytest.raises(ValueError, match="logits has"):
                run(changed(bad), zeros, guidance=1.0)
        with pytest.raises(ValueError, match="guidance is too high"):
            run(changed(3e38), changed(-3e38), guidance=5.0)
        for bad in (0.0, 1.0, -0.5, 2.0, math.nan, INF):
            with pytest.raises(ValueError, match="noise has a value outside, expected numbers strictly"):
                run(zeros, noise=changed(bad, half))
        for dtype in FLOAT_DTYPES:
            with pytest.raises(ValueError, match="something to choose"):
                run(torch.full((2, 3, 70), -INF, dtype=dtype))
            with pytest.raises(ValueError, match="something to choose"):
                run(torch.full((2, 3, 70), -INF, dtype=dtype), top_k=3, top_p=0.5)


BAD = [
    ({"logits": [1.0]}, TypeError, "logits has type list, expected a torch.Tensor"),
    ({"logits": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "logits has dtype .*, expected float32 or float16"),
    ({"logits": torch.zeros(2, 5, dtype=torch.int64)}, TypeError, "logits has dtype .*, expected float32 or float16"),
    ({"logits": torch.zeros(2, 5).to_sparse()}, TypeError, "logits has layout .*, expected a dense tensor"),
    ({"logits": torch.tensor(1.0)}, ValueError, r"logits has shape \[\], expected at least one dimension"),
    ({"logits": torch.zeros(2, 0)}, ValueError, r"logits has shape \[2, 0\], expected at least one entry per row"),
    ({"logits": torch.zeros(5, 2).t()}, ValueError, "logits has strides .*, expected a contiguous last dimension"),
    ({"uncond": torch.zeros(2, 4), "guidance": 1.0}, ValueError, r"uncond has shape \[2, 4\], expected \[2, 5\]"),
    ({"uncond": torch.zeros(2, 5).half(), "guidance": 1.0}, TypeError, "uncond has dtype float16, expected float32"),
    ({"uncond": torch.zeros(2, 5, device="meta"), "guidance": 1.0}, ValueError, "uncond is on meta"),
    ({"guidance": 1.0}, ValueError, "uncond is None, expected the logits without the condition"),
    ({"guidance": -1.0}, ValueError, "guidance is -1.0, expected a number from 0 to 1e30"),
    ({"guidance": math.nan}, ValueError, "guidance is nan, expected"),
    ({"guidance": "1"}, TypeError, "guidance is .*, expected a number"),
    ({"temperature": -0.1}, ValueError, "temperature is .*, expected"),
    ({"temperature": math.inf}, ValueError, "temperature is .*, expected"),
    ({"temperature": 10**400}, ValueError, "temperature is .*, expected"),
    ({"temperature": math.nan}, ValueError, "temperature is .*, expected"),
    ({"temperature": 1e-39}, ValueError, "temperature is .*, expected"),
    ({"top_k": -1}, ValueError, "top_k is -1, expected an int of at least 0"),
    ({"top_k": 2.0}, TypeError, "top_k is 2.0 .float., expected an int"),
    ({"top_p": 0.0}, ValueError, r"top_p is 0.0, expected a number above 0 and up to 1"),
    ({"top_p": 1.5}, ValueError, "top_p is .*, expected"),
    ({"top_p": math.nan}, ValueError, "top_p is .*, expected"),
    ({"seed": 1.0}, TypeError, "seed is .*, expected an int"),
    ({"seed": True}, TypeError, "seed is .*, expected an int"),
    ({"seed": np.float32(1)}, TypeError, "seed is .*, expected an int"),
    ({"temperature": True}, TypeError, "temperature is .*, expected a number"),
    ({"temperature": np.bool_(True)}, TypeError, "temperature is .*, expected a number"),
    ({"seed": torch.tensor([1.0, 2.0])}, TypeError, "seed has dtype float32, expected int64"),
    ({"seed": torch.tensor([1, 2, 3])}, ValueError, r"seed has shape \[3\], expected \[2\]"),
    ({"step": -1}, ValueError, "step is .*, expected an int from 0 to"),
    ({"step": 2**32}, ValueError, "step is .*, expected an int from 0 to"),
    ({"step": torch.tensor([1, 2])}, ValueError, r"step has shape \[2\], expected \[\]"),
    ({"step": torch.tensor(-1)}, ValueError, "step is -1, expected 0 to"),
    ({"noise": torch.full((2, 4), 0.5)}, ValueError, r"noise has shape \[2, 4\], expected \[2, 5\]"),
    ({"noise": torch.full((2, 5), 0.5).double()}, TypeError, "noise has dtype float64, expected float32"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    arguments = {"logits": torch.zeros(2, 5), "seed": 0, **change}
    with pytest.raises(error, match=message):
        sample_tokens(**arguments)


def test_the_name_is_public():
    assert showo_ext.sample_tokens is sample_tokens
