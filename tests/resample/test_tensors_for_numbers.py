"""Numbers that change in every step, given as tensors: the bits of the numbers themselves, and one compilation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from showo_ext import corrupt_tokens, reference, remask, resample, sample_tokens
from showo_ext.testing import randint, randn
from tests.resample.paths import EMULATED, available_paths, use_path

MASK_ID = 1000


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


SAMPLING = [
    {"guidance": 1.7, "temperature": 0.3},
    {"top_k": 7, "top_p": 0.8, "temperature": 1.3},
    {"guidance": 0.0},
    {"temperature": 0.0},
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 10**6, "top_p": 0.9},
    {"top_k": 3, "top_p": 1.0},
]


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize("vocab", [69, 600])  # rows that are aligned, and rows that are not
def test_sampling(path, vocab):
    cond, uncond, ids = randn(2, 6, vocab, scale=2.0), randn(2, 6, vocab, seed=1), torch.full((2, 6), MASK_ID)
    uncond[..., ::5] = -math.inf  # forbids tokens, but not where guidance is 0
    with use_path(path):
        for numbers in SAMPLING:
            tensors = {name: tensor(value) for name, value in numbers.items()}
            for function in (sample_tokens, lambda *x, **y: resample(x[0], ids, 2, MASK_ID, uncond=x[1], **y)):
                expected = function(cond, uncond, seed=3, **numbers)
                assert all(map(torch.equal, function(cond, uncond, seed=3, **tensors), expected)), numbers
                for name, value in tensors.items() if numbers in SAMPLING[:2] else ():  # one alone
                    got = function(cond, uncond, seed=3, **{**numbers, name: value})
                    assert all(map(torch.equal, got, expected)), (numbers, name)


@pytest.mark.parametrize("path", available_paths())
def test_remasking_and_corruption(path):
    ids, logprob, known = randint(0, 9, (3, 33)), randn(3, 33), randn(3, 33, seed=1) > 1
    with use_path(path):
        for heat in (0.0, 0.1, 5.0):
            expected = remask(ids, logprob, known, 7, heat, MASK_ID, seed=2, step=4)
            got = remask(ids, logprob, known, tensor(7), tensor(heat), MASK_ID, seed=2, step=tensor(4))
            assert all(map(torch.equal, got, expected))
        for ratio in (0.0, 0.1, 0.5 / 33, 1.5 / 33, 2.5 / 33, 1.0):  # halves in fp64, not in fp32
            expected = corrupt_tokens(ids, ratio, MASK_ID, seed=2)
            assert all(map(torch.equal, corrupt_tokens(ids, tensor(ratio), MASK_ID, seed=2), expected))
        narrow = torch.tensor(0.3)  # of float32
        expected = remask(ids, logprob, known, 7, narrow.item(), MASK_ID, seed=2)
        assert all(map(torch.equal, remask(ids, logprob, known, 7, narrow, MASK_ID, seed=2), expected))


def test_the_reference_takes_them_too():
    cond, uncond = randn(2, 4, 50), randn(2, 4, 50, seed=1)
    tensors = {"guidance": tensor(1.5), "temperature": tensor(0.5), "top_k": tensor(9), "top_p": tensor(0.9)}
    ids, logprob = reference.sample_tokens(cond, uncond, seed=1, **tensors)
    ours, ours_logprob = sample_tokens(cond, uncond, seed=1, **tensors)
    assert torch.equal(ids, ours)
    torch.testing.assert_close(ours_logprob, logprob)


# ---------------------------------------------------------------- values out of range


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": tensor(-1.0)}, "temperature is -1, expected"),
        ({"temperature": tensor(math.nan)}, "temperature is nan, expected"),
        ({"guidance": tensor(-1.0)}, "guidance is -1, expected"),
        ({"top_k": tensor(-1)}, "top_k is -1, expected"),
        ({"top_p": tensor(0.0)}, "top_p is 0, expected"),
        ({"remask_temperature": tensor(math.inf)}, "temperature is inf, expected"),
    ],
)
def test_the_cpu_refuses_values_out_of_range(change, message):
    logits = randn(2, 6, 20)
    with pytest.raises(ValueError, match=message):
        resample(logits, torch.full((2, 6), MASK_ID), 2, MASK_ID, uncond=logits, seed=0, **change)


@pytest.mark.skipif(not EMULATED, reason="needs the emulated device (make emulator)")
def test_cuda_does_what_is_documented_with_values_out_of_range():
    logits, uncond = randn(2, 3, 70), randn(2, 3, 70, seed=1)
    with use_path("emulated"):
        for heat in (-1.0, 1e-31, math.inf, math.nan):
            for limit in ({}, {"top_k": 5, "top_p": 0.5}):
                ids, logprob = sample_tokens(logits, temperature=tensor(heat), seed=0, **limit)
                assert (ids == 0).all()
                assert logprob.isnan().all()
        plain = sample_tokens(logits, seed=0)
        for limit in ({"top_k": tensor(-3)}, {"top_p": tensor(math.nan)}, {"top_p": tensor(2.0)}):
            assert all(map(torch.equal, sample_tokens(logits, seed=0, **limit), plain))
        for top_p in (0.0, -1.0):
            assert torch.equal(sample_tokens(logits, seed=0, top_p=tensor(top_p))[0], logits.argmax(-1))
        negative = sample_tokens(logits, uncond, guidance=tensor(-0.5), seed=0)[0]
        assert torch.equal(negative, sample_tokens(0.5 * logits + 0.5 * uncond, seed=0)[0])
        ids, known = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
        for heat in (-1.0, math.nan):
            got = remask(ids, logits[..., 0], known, 2, tensor(heat), MASK_ID, seed=0)
            assert all(map(torch.equal, got, remask(ids, logits[..., 0], known, 2, 0.0, MASK_ID, seed=0)))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor(1), TypeError, "temperature has dtype int64, expected float32 or float64"),
        (torch.ones(1), ValueError, r"temperature has shape \[1\], expected \[\]"),
        (torch.ones((), device="meta"), ValueError, "temperature is on meta, expected cpu, the device of logits"),
    ],
)
def test_bad_tensors(value, error, message):
    with pytest.raises(error, match=message):
        sample_tokens(randn(2, 5), temperature=value, seed=0)


# ---------------------------------------------------------------- compilation


def test_an_annealed_loop_compiles_once():
    torch.compiler.reset()
    counter = CompileCounter()
    logits, uncond, ids = randn(2, 8, 30), randn(2, 8, 30, seed=1), torch.full((2, 8), MASK_ID)

    def step(logits, uncond, ids, count, **numbers):
        return resample(logits, ids, count, MASK_ID, uncond=uncond, seed=1, **numbers)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for number in range(18):
        numbers = {
            "remask_temperature": 1 - number / 18,
            "temperature": 1.0 + number / 7,
            "guidance": number / 3,
            "top_p": 1 - number / 30,
            "top_k": 30 - number,
            "step": number,
        }
        tensors = {name: tensor(value) for name, value in numbers.items()}
        count = tensor(max(0, 7 - number))
        expected = step(logits, uncond, ids, int(count), **numbers)
        assert all(map(torch.equal, compiled(logits, uncond, ids, count, **tensors), expected))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_python_float_is_never_stale(backend):
    torch.compiler.reset()
    logits, ids = randn(2, 8, 30), torch.full((2, 8), MASK_ID)

    def step(logits, t):
        return resample(logits * t, ids, 3, MASK_ID, temperature=t + 0.1, remask_temperature=2 * t, seed=1)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for t in (1.0, 1.5, 0.3, 2.0, 1.0, 0.7):
        assert all(map(torch.equal, compiled(logits, t), step(logits, t))), t


def test_export_with_a_length_that_depends_on_the_shape():
    class Step(nn.Module):
        def forward(self, logits: Tensor, ids: Tensor) -> Tensor:
            return resample(logits, ids, logits.shape[1] // 2, MASK_ID, seed=1, top_k=logits.shape[1]).ids

    sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=4)}
    example = (randn(3, 8, 20), torch.full((3, 8), MASK_ID))
    for strict in (False, True):
        exported = torch.export.export(Step(), example, dynamic_shapes=(sizes, sizes), strict=strict).module()
        for inputs in (example, (randn(5, 13, 20), torch.full((5, 13), MASK_ID))):
            assert torch.equal(exported(*inputs), Step()(*inputs))
