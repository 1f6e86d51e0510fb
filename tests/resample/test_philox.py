"""Philox4x32-10: known answers, then the torch twin and every CPU code path against independent arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext._native import launch
from showo_ext.reference import philox
from showo_ext.testing import available_isas, use_isa
from tests.resample import oracles

# Random123's known-answer vectors for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = st.integers(0, 2**32 - 1)


def native_uniforms(count: int, counter: tuple[int, ...], key: tuple[int, ...]) -> np.ndarray:
    out = torch.full((count + 16,), float("nan"))
    words = dict(zip(("first_block", "position", "step", "stream_row", "key0", "key1"), (*counter, *key)))
    launch("philox_uniforms", out, out=out, count=count, **words)
    assert out[count:].isnan().all()
    return out[:count].numpy()


def to_uniform(words: tuple[int, ...]) -> np.ndarray:
    return np.array([(2 * (w >> 9) + 1) * 2.0**-24 for w in words], np.float32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert oracles.philox4x32_10(counter, key) == answer
    words = philox.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(w) for w in words) == answer
    for isa in available_isas():
        with use_isa(isa):
            np.testing.assert_array_equal(native_uniforms(4, counter, key), to_uniform(answer))


@settings(deadline=None, max_examples=60)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD), st.integers(1, 75))
def test_native_bits(counter, key, count):
    blocks = [oracles.philox4x32_10(((counter[0] + i) % 2**32, *counter[1:]), key) for i in range((count + 3) // 4)]
    expected = np.concatenate([to_uniform(words) for words in blocks])[:count]
    for isa in available_isas():
        with use_isa(isa):
            np.testing.assert_array_equal(native_uniforms(count, counter, key), expected)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([1, 2, 3]),
    WORD,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_reference_layout(seed, stream, step, rows, positions, elements):
    device = torch.device("cpu")
    shape = (rows, positions, elements)
    got = philox.uniforms(seed, stream, step, *shape, device)
    per_row = philox.uniforms(torch.full((rows,), seed), stream, step, *shape, device)
    assert got.shape == per_row.shape == shape
    assert got.dtype == torch.float32
    for b, n, e in np.ndindex(*shape):
        assert got[b, n, e].item() == oracles.philox_uniform(seed, stream, b, n, step, e)
        assert per_row[b, n, e].item() == oracles.philox_uniform(seed, stream, 0, n, step, e)


def test_uniforms_are_open_and_exact():
    ends = to_uniform((0, 2**32 - 1))
    assert ends[0] == 2.0**-24
    assert ends[1] == np.float32(1) - np.float32(2.0**-24) < 1
    u = native_uniforms(1 << 20, (0, 1, 2, 3), (4, 5)).astype(np.float64)
    assert 0 < u.min() < 2e-6
    assert 1 - 2e-6 < u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / len(u)) ** 0.5
    assert abs(u.var() - 1 / 12) < 2e-4
    lagged = np.corrcoef(u[:-1], u[1:])[0, 1]
    assert abs(lagged) < 5e-3
