"""resample: equal to sample_tokens and remask, one after the other, and to its plain-torch twin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import showo_ext
from showo_ext import reference, remask, resample, sample_tokens
from showo_ext._native import launch
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    guarded,
    inside_larger,
    poisoned,
    randint,
    randn,
    uniforms,
    use_threads,
)
from tests.resample.paths import available_paths, use_path

MASK_ID = 9000


def canvas(batch, length, known_share, seed=0, offset=100):
    ids = randint(offset, offset + 50, (batch, length), seed=seed)
    return ids.masked_fill(uniforms(batch, length, seed=seed + 1) >= known_share, MASK_ID)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([1, 8, 33, 1030]),
    st.sampled_from(FLOAT_DTYPES),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 1.75]),
    st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.0}, {"temperature": 0.5}]),
    st.sampled_from([0.0, 1.0, 50.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.sampled_from(available_paths()),
)
def test_is_sample_then_remask(
    batch, length, vocab, dtype, known_share, guidance, how, remask_temperature, flags, explicit, strided, seed, path
):
    cond, uncond = (randn(batch, length, vocab, dtype=dtype, seed=seed + i, scale=2.0) for i in range(2))
    ids, offset = canvas(batch, length, known_share, seed), 100
    if strided:  # for both ways: how a row lies in memory decides the order in which the kernels sum it
        cond, uncond, ids = inside_larger(cond), inside_larger(uncond), inside_larger(ids)
    known = uniforms(batch, length, seed=seed + 5) < known_share if flags else ids != MASK_ID
    counts = randint(0, length + 2, (batch,), seed=seed)
    noise = {"noise": uniforms(batch, length, vocab, seed=seed)} if explicit else {}
    remask_noise = {"noise": uniforms(batch, length, seed=seed)} if explicit else {}
    sampling = {"guidance": guidance, "seed": seed, "step": 3, **how}
    with use_path(path):
        codes, logp = sample_tokens(cond, uncond, **sampling, **noise)
        sampled = torch.where(known, ids, codes + offset)
        logprob = torch.where(known, 0.0, logp)
        out, masked = remask(
            sampled, logprob, known, counts, remask_temperature, MASK_ID, seed=seed, step=3, **remask_noise
        )
    arguments = {
        "uncond": uncond,
        "known": known if flags else None,
        "offset": offset,
        "remask_temperature": remask_temperature,
        **sampling,
        **noise,
        **{"remask_" + name: value for name, value in remask_noise.items()},
    }
    with use_path(path):
        got = resample(cond, ids, counts, MASK_ID, **arguments)
    assert torch.equal(got.sampled, sampled)
    assert torch.equal(got.logprob, logprob)
    assert torch.equal(got.ids, out)
    assert torch.equal(got.masked, masked)
    twin = reference.resample(cond, ids, counts, MASK_ID, **arguments)
    assert torch.equal(got.sampled, twin.sampled)
    torch.testing.assert_close(got.logprob, twin.logprob, rtol=1e-6, atol=2e-6)


def test_known_places_are_not_looked_at():
    ids = canvas(2, 8, 0.5)
    known = ids != MASK_ID
    logits = randn(2, 8, 40).masked_fill(known.unsqueeze(-1), math.nan)
    got = resample(logits, ids, 100, MASK_ID, seed=0, offset=100, remask_temperature=1e4)
    assert torch.equal(got.sampled[known], ids[known])
    assert torch.equal(got.masked, ~known)
    assert torch.equal(got.ids, ids)
    assert (got.logprob[known] == 0).all()
    assert (got.logprob[~known] < 0).all()


def test_a_whole_generation():
    """Twelve cosine steps fill the canvas; what is revealed stays; a row does not depend on its neighbours."""
    batch, length, vocab, steps = 3, 64, 257, 12
    logits = randn(steps, batch, length, vocab, scale=2.0)
    seeds = torch.tensor([11, 12, 13])

    def generate(rows):
        ids, temperature = torch.full((len(rows), length), MASK_ID), 1.0
        for step in range(steps):
            ratio = (step + 1) / steps
            unknown = int((ids[0] == MASK_ID).sum())
            mask_len = max(1, min(math.floor(length * math.cos(math.pi / 2 * ratio)), unknown - 1)) if ratio < 1 else 0
            before = ids
            got = resample(
                logits[step][rows], ids, mask_len, MASK_ID, seed=seeds[rows], step=step, remask_temperature=temperature
            )
            ids, temperature = got.ids, temperature * (1 - ratio)
            revealed = before != MASK_ID
            assert torch.equal(ids[revealed], before[revealed])
            assert (got.masked.sum(1) == mask_len).all()
            assert ((got.sampled >= 0) & (got.sampled < vocab)).all()
        assert torch.equal(ids, got.sampled)
        return ids

    together = generate([0, 1, 2])
    for b in range(batch):
        assert torch.equal(generate([b])[0], together[b])


def test_threads_agree():
    logits, ids = randn(2, 40, 2050), torch.full((2, 40), MASK_ID)
    results = []
    for threads in (1, 2, 5):
        with use_threads(threads):
            results.append(resample(logits, ids, 20, MASK_ID, seed=4))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_opcheck_and_compile():
    logits, ids = randn(2, 6, 20), canvas(2, 6, 0.5)
    op = torch.ops.showo_ext.resample.default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration")
    one, three = torch.tensor(1.0, dtype=torch.float64), torch.tensor(3)
    plain = (
        logits, None, ids, None, 3, None, MASK_ID, 0, 1.0, None, 5, None, 0, None, None, None,
        0.0, None, None, 1.0, None, 0, None, 1.0, None,
    )  # fmt: skip
    rich = (
        logits.half(), randn(2, 6, 20, seed=1).half(), ids, ids == MASK_ID, 0, torch.tensor([1, 2]), MASK_ID, 100,
        0.3, None, 0, torch.tensor([1, 2]), 0, three, uniforms(2, 6, 20), uniforms(2, 6),
        1.5, None, None, 0.5, None, 4, None, 0.9, None,
    )  # fmt: skip
    tensors = (
        logits, -logits, ids, None, 0, three, MASK_ID, 0, 1.0, one, 5, None, 0, None, None, None,
        1.0, one, None, 1.0, one, 0, three, 1.0, one,
    )  # fmt: skip
    composed = (
        torch.stack((logits, -logits)), logits, ids, None, 3, None, MASK_ID, 0, 1.0, None, 5, None, 0, None, None, None,
        0.0, None, torch.ones(2, 2, dtype=torch.float64), 1.0, None, 0, None, 1.0, None,
    )  # fmt: skip
    for arguments in (plain, rich, tensors, composed):
        torch.library.opcheck(op, arguments, test_utils=tests)
    assert_compiles(lambda x, i: tuple(resample(x, i, 3, MASK_ID, seed=1, step=2, remask_temperature=0.5)), logits, ids)
    assert_compiles(
        lambda x, u, i, m: resample(x, i, m, MASK_ID, uncond=u, guidance=2.0, seed=m, step=m[0]).ids,
        logits,
        -logits,
        ids,
        torch.tensor([2, 3]),
    )


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_writes_inside_and_reads_inside(dtype):
    batch, length, vocab = 2, 7, 69
    cond, uncond = guarded(randn(batch, length, vocab, dtype=dtype)), guarded(randn(batch, length, vocab, dtype=dtype))
    ids, counts = guarded(canvas(batch, length, 0.5)), guarded(torch.tensor([2, 3]))
    out, sampled = (guarded(poisoned((batch, length), dtype=torch.int64)) for _ in range(2))
    logprob, masked = guarded(poisoned((batch, length))), guarded(torch.ones(batch, length, dtype=torch.bool))
    with use_threads(2):
        launch(
            "resample", cond.tensor,
            ids_out=out.tensor, masked=masked.tensor, sampled=sampled.tensor,
            logprob=logprob.tensor, canvas=ids.tensor, known=None, mask_len=0,
            mask_len_data=counts.tensor, mask_len_stride=1, mask_id=MASK_ID, offset=100, remask_temperature=1.0,
            remask_temperature_data=None, guidance_data=None, temperature_data=None, top_k_data=None, top_p_data=None,
            remask_noise=None, cond=cond.tensor, uncond=uncond.tensor, dtype=dtype,
            batch=batch, length=length, vocab=vocab, cond_stride_b=length * vocab, cond_stride_n=vocab,
            uncond_stride_b=length * vocab, uncond_stride_n=vocab, guidance=1.0, temperature=1.0, weights=None,
            weights_stride_b=0, conditions=0, cond_stride_k=0,
            top_k=0, top_p=1.0, noise=None, seed=3, seed_data=None, seed_stride=0, step=0, step_data=None,
        )  # fmt: skip
    for guard in (cond, uncond, ids, counts, out, sampled, logprob, masked):
        guard.check()
    known = ids.tensor != MASK_ID
    assert torch.equal(out.tensor == MASK_ID, masked.tensor)
    assert torch.equal(sampled.tensor[known], ids.tensor[known])
    assert ((sampled.tensor >= 100) & (sampled.tensor < 100 + vocab)).all()
    assert (logprob.tensor <= 0).all()


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (0, 0, 0)])
def test_empty(shape):
    got = resample(torch.empty(shape), torch.empty(shape[:2], dtype=torch.int64), 3, MASK_ID, seed=0)
    assert all(t.shape == shape[:2] for t in got)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(4, 5)}, ValueError, r"logits has shape \[4, 5\], expected \[B, N, V\]"),
        ({"logits": torch.full((2, 4, 5), math.nan)}, ValueError, "logits has NaN"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"ids has shape \[2, 3\], expected \[2, 4\]"),
        ({"ids": torch.zeros(2, 4)}, TypeError, "ids has dtype .*, expected int64"),
        ({"known": torch.zeros(2, 4)}, TypeError, "known has dtype float32, expected bool"),
        ({"mask_len": -1}, ValueError, "mask_len is -1, expected an int of at least 0"),
        ({"mask_len": torch.tensor([1, -1])}, ValueError, "mask_len has a negative entry"),
        ({"mask_id": -1}, ValueError, r"mask_id is -\d, expected"),
        ({"offset": -1}, ValueError, "offset is -1, expected"),
        ({"guidance": 2.0}, ValueError, "uncond is None"),
        ({"remask_temperature": -1.0}, ValueError, "remask_temperature is -1.0, expected"),
        ({"remask_noise": torch.full((2, 5), 0.5)}, ValueError, "remask_noise has shape"),
        ({"noise": torch.full((2, 4), 0.5)}, ValueError, "noise has shape"),
        ({"seed": torch.tensor([1, 2, 3])}, ValueError, "seed has shape"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "logits": torch.zeros(2, 4, 5),
        "ids": torch.full((2, 4), MASK_ID),
        "mask_len": 1,
        "mask_id": MASK_ID,
        "seed": 0,
        **change,
    }
    with pytest.raises(error, match=message):
        resample(**arguments)


def test_the_name_is_public():
    assert showo_ext.resample is resample


def example_resample(package, dtype):
    return package.resample(randn(2, 9, 50, dtype=dtype), torch.full((2, 9), 99), 3, 99, temperature=0.8, seed=7)
