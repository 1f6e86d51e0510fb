"""Several conditions with weights in sample_tokens and resample, on every path of the CPU and in the CUDA kernels."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import reference, resample, sample_tokens
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    guarded,
    in_random_layout,
    inside_larger,
    poisoned,
    randint,
    randn,
    uniforms,
)
from tests.resample import oracles
from tests.resample.paths import available_paths, use_path

INF, NAN = math.inf, math.nan
MASK_ID = 9000
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
paths = pytest.mark.parametrize("path", available_paths())
WEIGHTS = [
    [1.5],
    [2.0, -0.5],
    [0.75, 0.0, 1.25],
    [0.0, 0.0],
    [0.5, 0.5],
    [-1.0],
    [3.0, -1.5, 0.25, 0.1, 1.0, 1.0, -0.3, 2.0],
]


def double(weights):
    return torch.tensor(weights, dtype=torch.float64)


def drawn(path, *arguments, **options):
    with use_path(path):
        return sample_tokens(*arguments, **options)


# ---------------------------------------------------------------- values


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(WEIGHTS),
    st.sampled_from([1, 7, 33, 130, 513, 1025]),
    st.sampled_from(FLOAT_DTYPES),
    st.sampled_from([{}, {"top_k": 5}, {"temperature": 0.0}, {"temperature": 0.4}]),
    st.sampled_from(available_paths()),
    st.sampled_from(["plain", "strided", "any order"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_exact_on_noise(weights, vocab, dtype, how, path, layout, forbidding, seed):
    conditions = randn(len(weights), 3, 2, vocab, dtype=dtype, seed=seed, scale=3.0)
    uncond = randn(3, 2, vocab, dtype=dtype, seed=seed + 1, scale=3.0)
    noise = uniforms(3, 2, vocab, seed=seed + 2)
    if forbidding:
        forbidden = (uniforms(*conditions.shape, seed=seed + 3) < 0.1) & (torch.arange(vocab) > 0)
        conditions = conditions.masked_fill(forbidden, -INF)
    x = oracles.composed(conditions, uncond, weights).reshape(-1, vocab)
    if layout == "strided":
        conditions, uncond = inside_larger(conditions), inside_larger(uncond)
    elif layout == "any order":
        conditions, uncond = in_random_layout(conditions, seed=seed), in_random_layout(uncond, seed=seed + 1)
    options = {"weights": double(weights), "seed": 0, "noise": noise, **how}
    ids, logprob = drawn(path, conditions, uncond, **options)
    assert ids.shape == logprob.shape == (3, 2)
    filters = {"temperature": 1.0, **how}
    for row, u, got, logp in zip(
        x, noise.reshape(-1, vocab).numpy(), ids.flatten().tolist(), logprob.flatten().tolist()
    ):
        index, expected, lead = oracles.sample_row(row, u, **filters)
        if lead > 1e-12:
            assert got == index
        if got == index:
            assert abs(logp - expected) <= 1e-6 * max(1.0, abs(expected))
    expected = reference.sample_tokens(conditions, uncond, **options)
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(logprob, expected[1], rtol=1e-6, atol=2e-6)


@paths
@dtypes
@pytest.mark.parametrize("how", [{}, {"top_k": 9, "top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_one_condition_is_guidance_bit_for_bit(path, dtype, how):
    cond, uncond = (randn(3, 5, 700, dtype=dtype, seed=s, scale=3.0) for s in range(2))
    cond[0, 0, :300], uncond[1, 1, 400:] = -INF, -INF
    cond[2, 2, :9], uncond[2, 2, :9] = 0.0, -0.0
    for guidance in (0.0, 0.1, 1.75, 5.0, random.uniform(0, 20)):
        plain = drawn(path, cond, uncond, guidance=guidance, seed=4, **how)
        weighted = drawn(path, cond[None], uncond, weights=double([1 + guidance]), seed=4, **how)
        assert all(map(torch.equal, plain, weighted)), guidance


@paths
def test_every_row_has_weights_of_its_own(path):
    conditions, uncond = randn(3, 4, 6, 300, scale=2.0), randn(4, 6, 300, seed=1, scale=2.0)
    weights = double([[1.5, 0.0, 0.0], [0.0, 2.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    seeds = torch.arange(4)
    ids, logprob = drawn(path, conditions, uncond, weights=weights, seed=seeds)
    for b in range(4):
        row = drawn(path, conditions[:, b : b + 1], uncond[b : b + 1], weights=weights[b], seed=seeds[b : b + 1])
        assert torch.equal(row[0][0], ids[b])
        assert torch.equal(row[1][0], logprob[b])
    flat = drawn(path, conditions[:, :, 0], uncond[:, 0], weights=weights.float(), seed=seeds)
    assert torch.equal(flat[0], ids[:, 0])
    one = drawn(path, conditions[:, 0, 0], uncond[0, 0], weights=weights[0], seed=0)
    assert torch.equal(one[0], drawn(path, conditions[0, 0, 0], uncond[0, 0], guidance=0.5, seed=0)[0])


@paths
@pytest.mark.parametrize("how", [{}, {"top_k": 20}], ids=str)
def test_logits_of_no_weight_are_not_read(path, how):
    """Of a condition whose weight is 0, and of the unconditional ones where the weights sum to 1."""
    conditions, uncond = randn(3, 2, 4, 90, scale=2.0), randn(2, 4, 90, seed=1)
    conditions[1] = NAN
    got = drawn(path, conditions, uncond, weights=double([1.25, 0.0, 0.5]), seed=2, **how)
    assert all(map(torch.equal, got, drawn(path, conditions[::2], uncond, weights=double([1.25, 0.5]), seed=2, **how)))
    half = double([0.5, 0.0, 0.5])
    unread = drawn(path, conditions, poisoned(uncond.shape), weights=half, seed=2, **how)
    assert all(map(torch.equal, unread, drawn(path, conditions, uncond, weights=half, seed=2, **how)))


# ---------------------------------------------------------------- what cannot be drawn from


@pytest.mark.parametrize("how", [{}, {"top_k": 5}], ids=str)
@pytest.mark.parametrize("place", [0, 40, 600])
def test_faults(how, place):
    """A negative weight makes -inf of +inf: refused on the CPU all the same, and told by NaN on CUDA."""
    for path in available_paths():
        for index, bad in ((0, INF), (1, INF), (0, NAN), (2, INF), (1, NAN)):
            logits = torch.zeros(3, 1, 2, 700)
            logits[index, 0, 1, place] = bad
            arguments = {"weights": double([-0.5, 2.0] if index == 0 else [2.0, -0.5]), "seed": 0, **how}
            if path == "emulated":
                ids, logprob = drawn(path, logits[:2], logits[2], **arguments)
                assert ids[0, 1] == 0
                assert logprob.isnan().tolist() == [[False, True]]
                continue
            with pytest.raises(ValueError, match=f"logits has .*: row 0, position 1, index {place}"):
                drawn(path, logits[:2], logits[2], **arguments)


@paths
def test_minus_infinity_forbids_whatever_the_weight(path):
    logits = torch.zeros(3, 1, 700)
    logits[0, 0, :200], logits[1, 0, 150:500], logits[2, 0, 450:699] = -INF, -INF, -INF
    for how in ({}, {"top_k": 30}, {"temperature": 0.0}):
        ids, logprob = drawn(path, logits[:2], logits[2], weights=double([2.0, -0.5]), seed=0, **how)
        assert (ids.item(), logprob.item()) == (699, 0.0)


def test_too_large_weights():
    logits, large = torch.full((2, 1, 9), 1e30), double([1e20, 1.0])
    with pytest.raises(ValueError, match="weights are too large, expected the combined logits to be finite in fp32"):
        sample_tokens(logits, logits[0] * -1, weights=large, seed=0)
    for bad in (NAN, INF, 1e31):
        with pytest.raises(ValueError, match=r"weights has .*, expected numbers from -1e30 to 1e30"):
            sample_tokens(logits, logits[0], weights=double([[1.0, bad]]), seed=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": [1.0, 2.0]}, TypeError, "weights has type list, expected a torch.Tensor"),
        (
            {"weights": torch.ones(2, dtype=torch.int64)},
            TypeError,
            "weights has dtype int64, expected float32 or float64",
        ),
        ({"weights": torch.ones(3)}, ValueError, r"weights has shape \[3\], expected \[2\], .*, or \[4, 2\]"),
        ({"weights": torch.ones(2, 2)}, ValueError, r"weights has shape \[2, 2\], expected \[2\]"),
        ({"weights": torch.ones(2, device="meta")}, ValueError, "weights is on meta, expected cpu"),
        ({"uncond": None}, ValueError, "uncond is None, expected the logits without a condition"),
        ({"uncond": torch.zeros(2, 4, 5)}, ValueError, r"uncond has shape \[2, 4, 5\], expected \[4, 5\]"),
        ({"guidance": 1.0}, ValueError, "guidance is given beside weights"),
        ({"guidance": torch.tensor(0.0)}, ValueError, "guidance is given beside weights"),
        ({"logits": torch.zeros(9, 4, 5)}, ValueError, r"logits has shape \[9, 4, 5\], expected 1 to 8 conditions"),
        ({"logits": torch.zeros(0, 4, 5)}, ValueError, r"logits has shape \[0, 4, 5\], expected 1 to 8 conditions"),
        ({"logits": torch.zeros(5)}, ValueError, r"logits has shape \[5\], expected 1 to 8 conditions"),
        ({"noise": torch.full((2, 4, 5), 0.5)}, ValueError, r"noise has shape \[2, 4, 5\], expected \[4, 5\]"),
        ({"seed": torch.tensor([1, 2])}, ValueError, r"seed has shape \[2\], expected \[4\]"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"logits": torch.zeros(2, 4, 5), "uncond": torch.zeros(4, 5), "weights": torch.ones(2), "seed": 0}
    with pytest.raises(error, match=message):
        sample_tokens(**{**arguments, **change})


# ---------------------------------------------------------------- resample


@paths
@dtypes
def test_a_step_with_weights(path, dtype):
    """As its twin; logits of known places are not looked at, memory beside the tensors is left alone."""
    conditions, uncond = randn(3, 2, 12, 200, dtype=dtype, scale=2.0), randn(2, 12, 200, dtype=dtype, seed=1)
    ids = randint(100, 150, (2, 12)).masked_fill(uniforms(2, 12) < 0.6, MASK_ID)
    conditions = conditions.masked_fill((ids != MASK_ID)[None, ..., None], NAN)
    weights = double([[1.5, 1.0, -0.5], [0.0, 2.0, 0.25]])
    options = {"weights": weights, "offset": 100, "seed": torch.tensor([5, 6]), "step": 3, "temperature": 0.7}
    guards = [guarded(t) for t in (conditions, uncond, ids)]
    with use_path(path):
        got = resample(guards[0].tensor, guards[2].tensor, 3, MASK_ID, uncond=guards[1].tensor, **options)
    expected = reference.resample(conditions, ids, 3, MASK_ID, uncond=uncond, **options)
    for guard in guards:
        guard.check()
    assert all(map(torch.equal, got[:3], expected[:3]))
    torch.testing.assert_close(got.logprob, expected.logprob, rtol=1e-6, atol=2e-6)
    empty = resample(conditions[:, :0], ids[:0], 3, MASK_ID, uncond=uncond[:0], weights=weights[0], seed=0)
    assert empty.ids.shape == (0, 12)


def test_compiles_for_all_weights():
    conditions, uncond, ids = randn(2, 2, 6, 20), randn(2, 6, 20, seed=1), torch.full((2, 6), MASK_ID)
    weights = torch.tensor([1.5, 0.5], dtype=torch.float64)

    def step(conditions, uncond, ids, weights):
        return tuple(resample(conditions, ids, 2, MASK_ID, uncond=uncond, weights=weights, seed=1))

    assert_compiles(step, conditions, uncond, ids, weights)
    assert_compiles(lambda c, u, w: sample_tokens(c, u, weights=w, seed=1), conditions, uncond, weights)


@pytest.mark.parametrize("how", [{}, {"top_k": 100}], ids=str)
@dtypes
def test_traffic(emulated, dtype, how):
    """Every logit is read once, in wide accesses; two blocks share a multiprocessor, as with guidance."""
    conditions, uncond = randn(3, 1, 4, 4096, dtype=dtype, scale=2.0), randn(1, 4, 4096, dtype=dtype, seed=1)
    sample_tokens(conditions, uncond, weights=double([1.5, 1.0, -0.5]), seed=0, **how)
    (record,) = emulated.records()
    compulsory = 4 * uncond.numel() * uncond.element_size()
    assert compulsory / 32 <= record.global_sectors[0] <= 1.02 * compulsory / 32 + 4 * 8  # and the weights
    assert record.bank_conflicts == 0
    assert record.warps("local") == 0
    assert record.registers <= 128
