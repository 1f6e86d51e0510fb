"""corrupt_tokens: subsets of exact size, labels, uniform choice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import showo_ext
from showo_ext import corrupt_tokens, reference
from showo_ext._native import launch
from showo_ext.reference import philox
from showo_ext.testing import assert_compiles, guarded, inside_larger, poisoned, randint, uniforms, use_threads
from tests.resample import oracles
from tests.resample.paths import EMULATED, use_path

MASK_ID = 8192
PATHS = ("baseline", *EMULATED)  # the CPU has one implementation


def count_of(length: int, ratio: float) -> int:
    return max(1, round(length * ratio)) if length else 0  # Python rounds half to even


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 4),
    st.integers(0, 70),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.sampled_from(PATHS),
)
def test_exact_on_noise(batch, length, ratio, as_tensor, strided, tied, seed, path):
    ids, noise = randint(0, 8192, (batch, length), seed=seed), uniforms(batch, length, seed=seed)
    if tied:
        noise = (noise * 4).floor() / 8 + 0.25
    counts = [count_of(length, ratio)] * batch
    given_ratio = ratio
    if as_tensor:
        given_ratio = (torch.arange(1, batch + 1) * ratio / max(batch, 1)).float()
        counts = [max(1, round((r * torch.tensor(float(length))).item())) if length else 0 for r in given_ratio]
    arguments = (inside_larger(ids), given_ratio) if strided else (ids, given_ratio)
    with use_path(path):
        got = corrupt_tokens(*arguments, MASK_ID, seed=0, noise=noise)
    for b in range(batch):
        expected = oracles.corrupt_row(ids[b].tolist(), counts[b], MASK_ID, noise[b].tolist())
        assert [t[b].tolist() for t in got] == list(expected)
    twin = reference.corrupt_tokens(ids, given_ratio, MASK_ID, seed=0, noise=noise)
    assert all(map(torch.equal, got, twin))


@pytest.mark.parametrize(
    ("length", "ratio", "count"),
    [
        (5, 0.5, 2),
        (7, 0.5, 4),
        (256, 0.0, 1),
        (256, 1e-9, 1),
        (256, 1.0, 256),
        (1, 0.3, 1),
        (10, 0.25, 2),
        (6, 0.25, 2),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_counts_round_half_to_even(length, ratio, count, path):
    ids = randint(0, 9, (3, length))
    for given_ratio in (ratio, torch.tensor(ratio), torch.full((3,), ratio)):
        with use_path(path):
            inputs, labels, masked = corrupt_tokens(ids, given_ratio, MASK_ID, seed=1)
        assert (masked.sum(1) == count).all()
        assert torch.equal(inputs, ids.masked_fill(masked, MASK_ID))
        assert torch.equal(labels, ids.masked_fill(~masked, -100))


def test_philox_equals_its_uniforms_as_noise():
    ids = randint(0, 9, (3, 101))
    seeds = torch.tensor([5, -6, 7])
    for seed in (-8, torch.tensor(-8), seeds):
        noise = philox.uniforms(seed, 3, 0, 3, 1, 101, ids.device)[:, 0]
        got = corrupt_tokens(ids, 0.4, MASK_ID, seed=seed)
        assert all(map(torch.equal, got, corrupt_tokens(ids, 0.4, MASK_ID, seed=0, noise=noise)))
        assert all(map(torch.equal, got, reference.corrupt_tokens(ids, 0.4, MASK_ID, seed=seed)))
    assert noise[1, 77].item() == oracles.philox_uniform(-6, 3, 0, 0, 0, 77)
    alone = corrupt_tokens(ids[1:2], 0.4, MASK_ID, seed=-6)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, got))


def test_every_place_and_pair_is_equally_likely():
    rows, length, count = 20_000, 8, 3
    _, _, masked = corrupt_tokens(torch.zeros(rows, length, dtype=torch.int64), count / length, MASK_ID, seed=5)
    together = masked.double().T @ masked.double() / rows
    single, pair = count / length, count * (count - 1) / (length * (length - 1))
    expected = torch.full((length, length), pair, dtype=torch.float64).fill_diagonal_(single)
    deviation = (together - expected).abs() / (expected * (1 - expected) / rows).sqrt()
    assert deviation.max() < 5


def test_threads_agree():
    ids = randint(0, 9, (33, 100))
    results = []
    for threads in (1, 3):
        with use_threads(threads):
            results.append(corrupt_tokens(ids, 0.3, MASK_ID, seed=1))
    assert all(map(torch.equal, *results))


def test_opcheck_and_compile():
    ids = randint(0, 9, (2, 12))
    op = torch.ops.showo_ext.corrupt_tokens.default
    for arguments in (
        (ids, 0.4, None, None, MASK_ID, 5, None, None),
        (ids, 1.0, torch.tensor(0.4, dtype=torch.float64), None, MASK_ID, 5, None, None),
        (ids, 0.0, None, torch.tensor([0.2, 0.9]), MASK_ID, 0, torch.tensor([1, 2]), None),
        (ids, 0.4, None, None, MASK_ID, 5, None, uniforms(2, 12)),
    ):
        torch.library.opcheck(op, arguments)
    assert_compiles(lambda i, r: corrupt_tokens(i, r, MASK_ID, seed=3), ids, torch.tensor([0.2, 0.9]))
    assert_compiles(lambda i, s: corrupt_tokens(i, 0.7, MASK_ID, seed=s), ids, torch.tensor([2, 9]))


def test_writes_inside_and_reads_inside():
    for length in (1, 7, 65):
        ids, noise, ratios = guarded(randint(0, 9, (3, length))), guarded(uniforms(3, length)), guarded(uniforms(3))
        inputs, labels = (guarded(poisoned((3, length), dtype=torch.int64)) for _ in range(2))
        masked = guarded(torch.ones(3, length, dtype=torch.bool))
        with use_threads(2):
            launch(
                "corrupt_tokens", ids.tensor,
                inputs=inputs.tensor, labels=labels.tensor, masked=masked.tensor,
                ids=ids.tensor, batch=3, length=length, mask_ratio=0.0, mask_ratio_data=None,
                mask_ratios=ratios.tensor,
                mask_id=MASK_ID, noise=noise.tensor, seed=0, seed_data=None, seed_stride=0, step=0, step_data=None,
            )  # fmt: skip
        for guard in (ids, noise, ratios, inputs, labels, masked):
            guard.check()
        assert torch.equal(inputs.tensor, ids.tensor.masked_fill(masked.tensor, MASK_ID))
        assert torch.equal(labels.tensor, ids.tensor.masked_fill(~masked.tensor, -100))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(shape):
    got = corrupt_tokens(torch.zeros(shape, dtype=torch.int64), 0.5, MASK_ID, seed=0)
    assert all(t.shape == shape for t in got)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": torch.zeros(2, 4)}, TypeError, "ids has dtype .*, expected int64"),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, ValueError, r"ids has shape \[\d\], expected \[B, N\]"),
        ({"mask_ratio": -0.1}, ValueError, "mask_ratio is .*, expected a number from 0 to 1"),
        ({"mask_ratio": 1.1}, ValueError, "mask_ratio is .*, expected a number from 0 to 1"),
        ({"mask_ratio": math.nan}, ValueError, "mask_ratio is .*, expected a number from 0 to 1"),
        ({"mask_ratio": "half"}, TypeError, "mask_ratio is .*, expected a number"),
        ({"mask_ratio": torch.tensor([0.5, 1.5])}, ValueError, r"mask_ratio has a value outside"),
        ({"mask_ratio": torch.tensor([0.5, math.nan])}, ValueError, r"mask_ratio has a value outside"),
        ({"mask_ratio": torch.tensor([0.5])}, ValueError, r"mask_ratio has shape \[1\], expected \[2\]"),
        ({"mask_ratio": torch.tensor([0.5, 0.5]).double()}, TypeError, "mask_ratio has dtype float64, expected"),
        ({"mask_id": -5}, ValueError, r"mask_id is -\d, expected"),
        ({"seed": 0.5}, TypeError, "seed is .*, expected an int"),
        ({"seed": torch.tensor([1])}, ValueError, "seed has shape"),
        ({"noise": torch.full((2, 3), 0.5)}, ValueError, "noise has shape"),
        ({"noise": torch.full((2, 4), 1.0)}, ValueError, "noise has a value outside"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"ids": torch.zeros(2, 4, dtype=torch.int64), "mask_ratio": 0.5, "mask_id": 9, "seed": 0, **change}
    with pytest.raises(error, match=message):
        corrupt_tokens(**arguments)


def test_the_name_is_public():
    assert showo_ext.corrupt_tokens is corrupt_tokens


def example_corrupt_tokens(package, dtype):
    return package.corrupt_tokens(randint(0, 50, (2, 9)), 0.4, 99, seed=7)
