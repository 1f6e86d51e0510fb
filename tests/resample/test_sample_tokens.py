"""sample_tokens: exact on given noise, exact filters, honest frequencies, reproducible."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import reference, sample_tokens
from showo_ext.reference import philox
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_within_budget,
    available_isas,
    inside_larger,
    poisoned,
    randn,
    uniforms,
    use_isa,
    use_threads,
)
from tests.resample import oracles
from tests.resample.paths import available_paths, use_path

INF = math.inf


def assert_rows_match(ids, logprob, x, noise, temperature=1.0, top_k=0, top_p=1.0):
    """Every row against the oracle; a choice may differ only where two scores are equal to fp64 rounding."""
    x = x.reshape(-1, x.shape[-1])
    noise = [None] * len(x) if noise is None else noise.reshape(x.shape).numpy()
    for row, u, got, logp in zip(x, noise, ids.reshape(-1).tolist(), logprob.reshape(-1).tolist()):
        index, expected, lead = oracles.sample_row(row, u, temperature, top_k, top_p)
        if lead > 1e-12:
            assert got == index
        if got == index:
            assert abs(logp - expected) <= 1e-6 * max(1.0, abs(expected))


# ---------------------------------------------------------------- values


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from([1, 2, 7, 8, 9, 31, 32, 33, 100, 1023, 1024, 1025, 2100]),
    st.sampled_from(FLOAT_DTYPES),
    st.sampled_from([0.0, 0.5, 1.75, 5.0]),
    st.sampled_from([0.0, 0.05, 0.7, 1.0, 30.0]),
    st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    st.sampled_from(available_paths()),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_exact_on_noise(lead, vocab, dtype, guidance, temperature, scale, path, strided, seed):
    shape = (*lead, vocab)
    cond, uncond = (randn(*shape, dtype=dtype, seed=seed + i, scale=scale) for i in range(2))
    noise = uniforms(*shape, seed=seed + 2)
    if scale == 3.0:  # some tokens forbidden, never all
        forbidden = (uniforms(*shape, seed=seed + 3) < 0.4) & (torch.arange(vocab) > 0)
        cond = cond.masked_fill(forbidden, -INF)
        uncond = uncond.masked_fill(forbidden, -INF)
    x = oracles.guided(cond, uncond, guidance)
    if strided:
        cond, uncond, noise = inside_larger(cond), inside_larger(uncond), inside_larger(noise)
    kwargs = {"guidance": guidance, "temperature": temperature, "seed": 0, "noise": noise}
    with use_path(path):
        ids, logprob = sample_tokens(cond, uncond, **kwargs)
    assert ids.dtype == torch.int64
    assert logprob.dtype == torch.float32
    assert ids.shape == logprob.shape == tuple(lead)
    assert_rows_match(ids, logprob, x, noise, temperature)
    ids_ref, logprob_ref = reference.sample_tokens(cond, uncond, **kwargs)
    assert torch.equal(ids, ids_ref)
    torch.testing.assert_close(logprob, logprob_ref, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_philox_equals_its_uniforms_as_noise(path, dtype):
    cond, uncond = (randn(3, 17, 1061, dtype=dtype, seed=s, scale=2.0) for s in range(2))
    noise = philox.uniforms(-12345, 1, 7, 3, 17, 1061, cond.device)
    with use_path(path):
        drawn = sample_tokens(cond, uncond, guidance=1.75, seed=-12345, step=7)
        given_ = sample_tokens(cond, uncond, guidance=1.75, seed=0, noise=noise)
    expected = reference.sample_tokens(cond, uncond, guidance=1.75, seed=-12345, step=7)
    for ids, logprob in (given_, expected):
        assert torch.equal(drawn[0], ids)
        torch.testing.assert_close(drawn[1], logprob, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", available_paths())
def test_logprob_within_error_budget(path):
    logits = randn(64, 8192, seed=5, scale=4.0)
    with use_path(path):
        ids, logprob = sample_tokens(logits, seed=1)
    oracle = logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    same = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert_within_budget(logprob, oracle, same, what="logprob")


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize("slope", [-30.0, -3.0, 3.0, 30.0])
def test_maximum_that_moves_from_block_to_block(path, slope):
    """The running maximum and the bound on who may win are rescaled together."""
    logits = torch.linspace(0, slope, 5000) + randn(40, 5000)
    with use_path(path):
        ids, logprob = sample_tokens(logits, seed=8)
    expected = reference.sample_tokens(logits, seed=8)
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(logprob, expected[1], rtol=1e-6, atol=2e-6)


def test_extreme_logits():
    logits = torch.tensor([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38], [1e-38, 0.0, -1e-38], [-INF, -INF, -5.0]])
    noise = torch.full((4, 3), 0.5)
    ids, logprob = sample_tokens(logits, seed=0, noise=noise)
    assert ids.tolist() == [0, 0, 0, 2]
    torch.testing.assert_close(logprob, torch.tensor([0.0, -math.log(3), -math.log(3), 0.0]))
    for temperature in (1e-30, 1e30):
        sample_tokens(logits, temperature=temperature, seed=0)


def test_equal_scores_go_to_the_lower_index():
    for vocab in (5, 40, 3000):
        ids, logprob = sample_tokens(torch.zeros(2, vocab), seed=0, noise=torch.full((2, vocab), 0.25))
        assert ids.tolist() == [0, 0]
        torch.testing.assert_close(logprob, torch.full((2,), -math.log(vocab)))
        ids, _ = sample_tokens(torch.zeros(2, vocab), temperature=0, seed=0)
        assert ids.tolist() == [0, 0]


def test_greedy_logprob_is_that_of_temperature_one():
    logits = randn(9, 50, seed=3)
    ids, logprob = sample_tokens(logits, temperature=0, top_k=7, seed=0)
    assert torch.equal(ids, logits.argmax(-1))
    expected = logits.topk(7).values.log_softmax(-1)[:, 0]
    torch.testing.assert_close(logprob, expected)


def test_minus_infinity_in_either_input_forbids():
    cond, uncond = torch.zeros(1, 40), torch.zeros(1, 40)
    cond[0, :10] = -INF
    uncond[0, 5:39] = -INF
    for path in available_paths():
        with use_path(path):
            ids, logprob = sample_tokens(cond, uncond, guidance=2.0, seed=0)
            assert (ids.item(), logprob.item()) == (39, 0.0)


def test_uncond_is_not_read_without_guidance():
    logits = randn(3, 9)
    plain = sample_tokens(logits, seed=4)
    other = sample_tokens(logits, poisoned(logits.shape), guidance=0.0, seed=4)
    assert all(map(torch.equal, plain, other))


# ---------------------------------------------------------------- top-k, top-p


def kept_and_logprob(logits_row, **kwargs):
    vocab = logits_row.shape[0]
    noise = oracles.favouring_noise(vocab)
    ids, logprob = sample_tokens(logits_row.expand(vocab, -1), seed=0, noise=noise, **kwargs)
    expected = reference.sample_tokens(logits_row.expand(vocab, -1), seed=0, noise=noise, **kwargs)
    assert torch.equal(ids, expected[0])
    torch.testing.assert_close(logprob, expected[1], rtol=1e-6, atol=2e-6)
    own = ids == torch.arange(vocab)
    return own.nonzero()[:, 0].tolist(), logprob[own]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.sampled_from([-INF, -2.5, -1.0, -0.0, 0.0, 0.5, 0.5000001, 3.0]) | st.floats(-4, 4, width=32),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 45),
    st.sampled_from([0.01, 0.3, 0.5, 0.77, 0.95, 0.999, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from(available_paths()),
)
def test_filters_keep_exactly(values, top_k, top_p, temperature, path):
    logits = torch.tensor(values)
    if bool((logits == -INF).all()):
        logits[0] = 0.0
    z = logits.double().numpy() / temperature
    with use_path(path):
        kept, logprob = kept_and_logprob(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    expected = sorted(oracles.kept_by_filters(z, top_k, top_p))
    if kept != expected:  # allowed only where a prefix ends within rounding of top_p
        near = [oracles.kept_by_filters(z, top_k, top_p * (1 + e)) for e in (-2e-6, 2e-6)]
        assert sorted(kept) in [sorted(k) for k in near]
        return
    exact = z[kept] - math.log(math.fsum(np.exp(z[kept])))
    torch.testing.assert_close(logprob.double(), torch.tensor(exact), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("path", available_paths())
def test_filters_with_ties(path):
    with use_path(path):
        tied = torch.zeros(10)
        assert kept_and_logprob(tied, top_k=3)[0] == [0, 1, 2]
        assert kept_and_logprob(tied, top_p=0.45)[0] == [0, 1, 2, 3, 4]
        assert kept_and_logprob(tied, top_p=1e-9)[0] == [0]
        assert kept_and_logprob(tied, top_k=5, top_p=0.5)[0] == [0, 1, 2]
        mixed = torch.tensor([0.0, 1.0, 0.0, 1.0, -0.0, -1.0])
        assert kept_and_logprob(mixed, top_k=3)[0] == [0, 1, 3]
        assert kept_and_logprob(mixed, top_k=4)[0] == [0, 1, 2, 3]
        assert kept_and_logprob(mixed, top_k=5)[0] == [0, 1, 2, 3, 4]
        assert kept_and_logprob(mixed, top_k=99)[0] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kwargs", [{"top_k": 1}, {"top_k": 100}, {"top_p": 0.9}, {"top_k": 500, "top_p": 0.3}])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_filters_on_long_rows(kwargs, dtype):
    cond, uncond = (randn(2, 3, 8193, dtype=dtype, seed=s, scale=2.0) for s in range(2))
    got = sample_tokens(cond, uncond, guidance=1.75, seed=9, **kwargs)
    expected = reference.sample_tokens(cond, uncond, guidance=1.75, seed=9, **kwargs)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=2e-6)


# ---------------------------------------------------------------- frequencies


def chi_square(ids, probabilities):
    expected = probabilities * ids.numel()
    observed = torch.bincount(ids.reshape(-1), minlength=len(probabilities)).double()
    assert (observed[probabilities == 0] == 0).all(), "a token of probability zero was drawn"
    used = probabilities > 0
    return (((observed - expected) ** 2)[used] / expected[used]).sum().item(), int(used.sum()) - 1


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies(isa, temperature):
    probabilities = torch.tensor([0.4, 0.0, 0.3, 1e-3, 0.2, 0.0, 0.09, 0.009], dtype=torch.float64)
    logits = (probabilities.log() * temperature).float()
    with use_isa(isa):
        ids, logprob = sample_tokens(logits.expand(4, 50_000, -1), temperature=temperature, seed=2024)
    statistic, freedom = chi_square(ids, probabilities)
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)
    torch.testing.assert_close(logprob.double(), probabilities.log()[ids], rtol=1e-5, atol=1e-5)


def test_frequencies_of_filtered_and_long_rows():
    logits = torch.linspace(0, -3, 12)
    kept = torch.tensor(sorted(oracles.kept_by_filters(logits.double().numpy(), 9, 0.8)))
    probabilities = torch.zeros(12, dtype=torch.float64)
    probabilities[kept] = logits.double()[kept].softmax(0)
    ids, _ = sample_tokens(logits.expand(100_000, -1), top_k=9, top_p=0.8, seed=1)
    statistic, freedom = chi_square(ids, probabilities)
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)
    ids, _ = sample_tokens(torch.zeros(2048).expand(20_000, -1), seed=2)  # flat: 32 equal bins
    statistic, freedom = chi_square(ids // 64, torch.full((32,), 1 / 32, dtype=torch.float64))
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


# ---------------------------------------------------------------- seeds


def test_a_row_with_its_own_seed_does_not_depend_on_its_neighbours():
    logits = randn(5, 11, 300, seed=1)
    seeds = torch.tensor([7, -3, 7, 2**62, 0])
    ids, logprob = sample_tokens(logits, seed=seeds, step=4)
    for b in range(5):
        alone = sample_tokens(logits[b : b + 1], seed=int(seeds[b]), step=4)
        assert torch.equal(alone[0][0], ids[b])
        assert torch.equal(alone[1][0], logprob[b])
    order = torch.tensor([3, 0, 4])
    assert torch.equal(sample_tokens(logits[order], seed=seeds[order], step=4)[0], ids[order])


def test_what_the_noise_depends_on():
    logits = torch.zeros(2, 6, 997)
    ids, _ = sample_tokens(logits, seed=1)
    assert torch.equal(ids, sample_tokens(logits, seed=1)[0])
    assert torch.equal(ids, sample_tokens(logits, seed=torch.tensor(1))[0])  # 0-d: one seed for the batch
    assert torch.equal(sample_tokens(logits, seed=1, step=torch.tensor(9))[0], sample_tokens(logits, seed=1, step=9)[0])
    assert torch.equal(ids[:1], sample_tokens(logits[:1], seed=1)[0])
    assert ids.unique().numel() == 12  # every row and position draws its own
    for other in (sample_tokens(logits, seed=2), sample_tokens(logits, seed=1, step=1)):
        assert (other[0] != ids).all()
    flat = sample_tokens(logits.reshape(2, 2, 3, 997), seed=1)[0]
    assert torch.equal(flat.reshape(2, 6), ids)
    assert torch.equal(sample_tokens(logits[:, 0], seed=1)[0], ids[:, 0])
    assert torch.equal(sample_tokens(logits[0, 0], seed=1)[0], ids[0, 0])


def test_threads_and_code_paths_agree():
    cond, uncond = (randn(2, 40, 2050, seed=s, scale=3.0) for s in range(2))
    run = partial(sample_tokens, cond, uncond, guidance=1.5, top_p=0.99, seed=6)
    expected = run()
    for threads in (1, 2, 5):
        with use_threads(threads):
            assert all(map(torch.equal, run(), expected))
    for isa in available_isas():
        with use_isa(isa):
            ids, logprob = run()
            assert torch.equal(ids, expected[0])
            torch.testing.assert_close(logprob, expected[1], rtol=1e-6, atol=1e-6)


def example_sample_tokens(package, dtype):
    logits, uncond = (randn(3, 50, dtype=dtype, seed=s) for s in range(2))
    return package.sample_tokens(logits, uncond, guidance=1.5, top_k=9, top_p=0.9, seed=7)
