"""remask: exactly as many as asked for, the least confident, never a known place."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import showo_ext
from showo_ext import reference, remask
from showo_ext._native import launch
from showo_ext.reference import philox
from showo_ext.testing import assert_compiles, guarded, inside_larger, poisoned, randint, randn, uniforms, use_threads
from tests.resample import oracles
from tests.resample.paths import EMULATED, use_path

MASK_ID = 8192
PATHS = ("baseline", *EMULATED)  # the CPU has one implementation


def assert_equals_oracle(ids, logprob, known, counts, temperature, noise, got):
    for b in range(ids.shape[0]):
        expected_ids, expected_masked = oracles.remask_row(
            ids[b].tolist(), logprob[b].tolist(), known[b].tolist(), counts[b], temperature, MASK_ID, noise[b].tolist()
        )
        assert got[0][b].tolist() == expected_ids
        assert got[1][b].tolist() == expected_masked


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 3),
    st.integers(0, 70),
    st.data(),
    st.sampled_from([0.0, 0.3, 1.0, 1e6]),
    st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.sampled_from(PATHS),
)
def test_exact_on_noise(batch, length, data, temperature, known_share, strided, tied, seed, path):
    ids = randint(0, 8192, (batch, length), seed=seed)
    logprob = -randn(batch, length, seed=seed).abs()
    if tied:
        logprob = logprob.round()
    known = uniforms(batch, length, seed=seed + 1) < known_share
    noise = uniforms(batch, length, seed=seed + 2)
    counts = data.draw(st.lists(st.integers(0, length + 3), min_size=batch, max_size=batch))
    arguments = (ids, logprob, known)
    if strided:
        arguments = tuple(map(inside_larger, arguments))
    call = partial(remask, *arguments, temperature=temperature, mask_id=MASK_ID, seed=0, noise=noise)
    before = [t.clone() for t in arguments]
    one = data.draw(st.integers(0, length + 3))
    with use_path(path):
        got, got_one = call(mask_len=torch.tensor(counts, dtype=torch.int64)), call(mask_len=one)
    assert_equals_oracle(ids, logprob, known, counts, temperature, noise, got)
    assert all(map(torch.equal, arguments, before))
    unknown = (~known).sum(1)
    assert torch.equal(got[1].sum(1), torch.tensor(counts, dtype=torch.int64).minimum(unknown))
    assert not (got[1] & known).any()
    assert torch.equal(got[0] == MASK_ID, got[1])
    assert_equals_oracle(ids, logprob, known, [one] * batch, temperature, noise, got_one)
    expected = reference.remask(ids, logprob, known, one, temperature, MASK_ID, seed=0, noise=noise)
    assert all(map(torch.equal, got_one, expected))


@pytest.mark.parametrize("path", PATHS)
def test_known_places_survive_any_temperature(path):
    """The official formula gives known tokens confidence 88.7 + noise, which a high temperature overturns."""
    ids, known = torch.zeros(64, 16, dtype=torch.int64), torch.arange(16).expand(64, -1) % 2 == 0
    logprob = torch.where(known, math.nan, -30.0)  # what a known place holds does not matter
    with use_path(path):
        for temperature in (0.0, 5.0, 1e4, 1e30):
            for mask_len, expected in ((0, 0), (3, 3), (8, 8), (16, 8), (10**12, 8)):
                _, masked = remask(ids, logprob, known, mask_len, temperature, MASK_ID, seed=3)
                assert not (masked & known).any()
                assert (masked.sum(1) == expected).all()


def test_all_known_row_is_left_alone():
    ids = randint(0, 100, (2, 9))
    known = torch.tensor([[True] * 9, [False] * 9])
    out, masked = remask(ids, torch.zeros(2, 9), known, 4, 1.0, MASK_ID, seed=1)
    assert torch.equal(out[0], ids[0])
    assert masked.sum(1).tolist() == [0, 4]


@pytest.mark.parametrize("path", PATHS)
def test_ties_go_by_index_and_infinities_are_ordered(path):
    ids, known = torch.arange(6)[None], torch.tensor([[False, True, False, False, False, False]])
    cases = ([0.0] * 6, [0, 2, 3, 4, 5]), ([0.0, -9.0, math.inf, -math.inf, 0.0, -1.0], [3, 5, 0, 4, 2])
    with use_path(path):
        for values, order in cases:
            for count in range(6):
                _, masked = remask(ids, torch.tensor([values]), known, count, 0.0, MASK_ID, seed=0)
                assert masked[0].nonzero()[:, 0].tolist() == sorted(order[:count])


def test_philox_equals_its_uniforms_as_noise():
    ids, known = torch.zeros(3, 201, dtype=torch.int64), uniforms(3, 201) < 0.3
    logprob = -randn(3, 201).abs()
    seeds = torch.tensor([4, -4, 2**40])
    for seed in (99, seeds):
        for step in (0, 5, torch.tensor(5)):
            noise = philox.uniforms(seed, 2, step, 3, 1, 201, ids.device)[:, 0]
            got = remask(ids, logprob, known, 50, 1.0, MASK_ID, seed=seed, step=step)
            exact = remask(ids, logprob, known, 50, 1.0, MASK_ID, seed=0, noise=noise)
            expected = reference.remask(ids, logprob, known, 50, 1.0, MASK_ID, seed=seed, step=step)
            assert torch.equal(got[1], exact[1])
            assert torch.equal(got[1], expected[1])
    whole = remask(ids, logprob, known, 50, 1.0, MASK_ID, seed=seeds)[1]
    for b in range(3):
        alone = remask(ids[b : b + 1], logprob[b : b + 1], known[b : b + 1], 50, 1.0, MASK_ID, seed=int(seeds[b]))
        assert torch.equal(alone[1][0], whole[b])


def test_masks_at_the_right_rate():
    """Two places: the first is masked with probability 1 / (1 + exp((a - b) / temperature)), Gumbel's property."""
    count, temperature = 40_000, 2.0
    logprob = torch.tensor([-1.0, -2.5]).expand(count, -1)
    ids, known = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, 2, dtype=torch.bool)
    _, masked = remask(ids, logprob, known, 1, temperature, MASK_ID, seed=11)
    share, expected = masked[:, 0].double().mean().item(), 1 / (1 + math.exp(1.5 / temperature))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_threads_agree():
    ids, known = randint(0, 9, (33, 100)), torch.zeros(33, 100, dtype=torch.bool)
    logprob = randn(33, 100)
    results = []
    for threads in (1, 3):
        with use_threads(threads):
            results.append(remask(ids, logprob, known, 30, 1.0, MASK_ID, seed=1))
    assert all(map(torch.equal, *results))


def test_opcheck_and_compile():
    ids, logprob, known = randint(0, 9, (2, 12)), randn(2, 12), uniforms(2, 12) < 0.5
    op = torch.ops.showo_ext.remask.default
    half, step, rows = torch.tensor(0.5, dtype=torch.float64), torch.tensor(3), torch.tensor([1, 2])
    for arguments in (
        (ids, logprob, known, 3, None, 1.0, None, MASK_ID, 5, None, 0, None, None),
        (ids, logprob, known, 0, rows + 1, 0.5, None, MASK_ID, 0, rows, 0, step, None),
        (ids, logprob, known, 3, step, 1.0, half, MASK_ID, 0, None, 1, None, uniforms(2, 12)),
    ):
        torch.library.opcheck(op, arguments)
    assert_compiles(lambda i, p, k: remask(i, p, k, 3, 0.5, MASK_ID, seed=1, step=2), ids, logprob, known)
    assert_compiles(
        lambda i, p, k, m: remask(i, p, k, m, 0.5, MASK_ID, seed=m, step=m[0]), ids, logprob, known, known.sum(1)
    )


def test_writes_inside_and_reads_inside():
    for length in (1, 7, 65):
        ids, logprob = guarded(randint(0, 9, (3, length))), guarded(randn(3, length))
        known, noise = guarded(uniforms(3, length) < 0.5), guarded(uniforms(3, length))
        counts = guarded(torch.tensor([0, 1, length]))
        out = guarded(poisoned((3, length), dtype=torch.int64))
        masked = guarded(torch.ones(3, length, dtype=torch.bool))
        with use_threads(2):
            launch(
                "remask", ids.tensor,
                ids_out=out.tensor, masked=masked.tensor, ids=ids.tensor,
                logprob=logprob.tensor, known=known.tensor, batch=3, length=length, mask_len=0,
                mask_len_data=counts.tensor, mask_len_stride=1, temperature=1.0, temperature_data=None,
                mask_id=MASK_ID,
                noise=noise.tensor, seed=0, seed_data=None, seed_stride=0, step=0, step_data=None,
            )  # fmt: skip
        for guard in (ids, logprob, known, noise, counts, out, masked):
            guard.check()
        assert torch.equal(out.tensor, ids.tensor.masked_fill(masked.tensor, MASK_ID))
        assert not (masked.tensor & known.tensor).any()


def test_refused_values():
    ids, logprob, known = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool)
    run = partial(remask, ids, temperature=1.0, mask_id=9, seed=0)
    with pytest.raises(ValueError, match="logprob has NaN"):
        run(torch.full((2, 4), math.nan), known, 1)
    for bad in (0.0, 1.0, math.nan, -1.0):
        with pytest.raises(ValueError, match="noise has a value outside, expected numbers strictly between 0 and 1"):
            run(logprob, known, 1, noise=torch.full((2, 4), bad))
    with pytest.raises(ValueError, match="mask_len has a negative entry"):
        run(logprob, known, torch.tensor([1, -1]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": torch.zeros(2, 4)}, TypeError, "ids has dtype .*, expected int64"),
        ({"ids": torch.zeros(8, dtype=torch.int64)}, ValueError, r"ids has shape \[\d\], expected \[B, N\]"),
        ({"ids": torch.zeros(2, 4, dtype=torch.int32)}, TypeError, "ids has dtype .*, expected int64"),
        ({"logprob": torch.zeros(2, 3)}, ValueError, r"logprob has shape \[2, 3\], expected \[2, 4\], the shape"),
        ({"logprob": torch.zeros(2, 4).double()}, TypeError, "logprob has dtype float64, expected float32"),
        ({"known": torch.zeros(2, 4)}, TypeError, "known has dtype float32, expected bool"),
        ({"known": torch.zeros(4, dtype=torch.bool)}, ValueError, "known has shape"),
        ({"known": torch.zeros(2, 4, dtype=torch.bool, device="meta")}, ValueError, "known is on meta"),
        ({"mask_len": -1}, ValueError, "mask_len is -1, expected an int of at least 0"),
        ({"mask_len": 1.0}, TypeError, "mask_len is .*, expected an int"),
        ({"mask_len": torch.tensor([1, 2, 3])}, ValueError, "mask_len has shape"),
        ({"mask_len": torch.tensor([1, 2], dtype=torch.int32)}, TypeError, "mask_len has dtype int32, expected int64"),
        ({"temperature": -1.0}, ValueError, "temperature is .*, expected a number from 0"),
        ({"temperature": math.nan}, ValueError, "temperature is .*, expected a number from 0"),
        ({"temperature": math.inf}, ValueError, "temperature is .*, expected a number from 0"),
        ({"mask_id": -1}, ValueError, r"mask_id is -\d, expected"),
        ({"mask_id": 1.5}, TypeError, "mask_id is .*, expected an int"),
        ({"seed": None}, TypeError, "seed is .*, expected an int"),
        ({"noise": torch.full((2, 5), 0.5)}, ValueError, "noise has shape"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "ids": torch.zeros(2, 4, dtype=torch.int64),
        "logprob": torch.zeros(2, 4),
        "known": torch.zeros(2, 4, dtype=torch.bool),
        "mask_len": 1,
        "temperature": 1.0,
        "mask_id": 9,
        "seed": 0,
        **change,
    }
    with pytest.raises(error, match=message):
        remask(**arguments)


def test_the_name_is_public():
    assert showo_ext.remask is remask


def example_remask(package, dtype):
    known = randint(0, 2, (2, 9)).bool()
    return package.remask(randint(0, 50, (2, 9)), -uniforms(2, 9), known, 3, 0.7, 99, seed=7)
