"""Masks of windows, caches and sequences side by side: each against its formula, written as a dense matrix."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask

SIDES = st.one_of(st.none(), st.integers(0, 12))


def window(rows: int, columns: int, left: int | None, right: int | None) -> torch.Tensor:
    """flash-attn's words: row i sees the columns from i + columns - rows - left to i + columns - rows + right."""
    own = torch.arange(rows).unsqueeze(1) + columns - rows
    column = torch.arange(columns)
    seen = torch.ones(rows, columns, dtype=torch.bool)
    if left is not None:
        seen &= column >= own - left
    if right is not None:
        seen &= column <= own + right
    return seen


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(0, 15), st.integers(0, 15), SIDES, SIDES)
def test_sliding_window(batch, rows, columns, left, right):
    mask = OmniMask.sliding_window(batch, rows, left, right, kv_length=columns)
    assert mask.shape == (batch, rows, columns)
    assert torch.equal(mask.to_dense(), window(rows, columns, left, right).expand(batch, -1, -1))
    OmniMask.from_intervals(mask.intervals, columns)  # no range is outside


def test_a_window_without_a_left_side_is_causal():
    assert torch.equal(OmniMask.sliding_window(2, 7, None).to_dense(), OmniMask.causal(2, 7).to_dense())
    assert torch.equal(OmniMask.sliding_window(1, 7, None, None).to_dense(), OmniMask.full(1, 7).to_dense())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=4), st.integers(1, 9), SIDES, SIDES)
def test_cache_seqlens(lengths, rows, left, right):
    for dtype in (torch.int32, torch.int64):
        mask = OmniMask.cache_seqlens(torch.tensor(lengths, dtype=dtype), rows, 15, left=left, right=right)
        for dense, length in zip(mask.to_dense(), lengths, strict=True):
            assert torch.equal(dense[:, :length], window(rows, length, left, right))
            assert not dense[:, length:].any()
    OmniMask.from_intervals(mask.intervals, 15)


def ends(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=5), st.integers(0, 3), SIDES, SIDES
)
@example([(0, 3), (4, 0), (0, 0), (2, 5)], 2, None, 0)
def test_from_cu_seqlens(sizes, spare, left, right):
    rows, columns = ([size[side] for size in sizes] for side in (0, 1))
    expected = torch.block_diag(*(window(r, c, left, right) for r, c in sizes)).bool()
    expected = torch.nn.functional.pad(expected, (0, spare, 0, spare))
    mask = OmniMask.from_cu_seqlens(
        ends(rows),
        sum(rows) + spare,
        kv_cu_seqlens=ends(columns),
        kv_length=sum(columns) + spare,
        left=left,
        right=right,
    )
    assert torch.equal(mask.to_dense()[0], expected)
    OmniMask.from_intervals(mask.intervals, mask.kv_length)


def test_from_cu_seqlens_of_self_attention_is_a_block_diagonal():
    packed = OmniMask.block_diagonal([[OmniMask.causal(1, n) for n in (5, 1, 8)]], 16)
    assert torch.equal(OmniMask.from_cu_seqlens(ends([5, 1, 8]), 16).to_dense(), packed.to_dense())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OmniMask.sliding_window(1, 5, -1), ValueError, "left is -1, expected an int of at least 0"),
        (lambda: OmniMask.sliding_window(1, 5, 1.5), TypeError, "left is 1.5 .float., expected an int"),
        (lambda: OmniMask.sliding_window(1, -5, 1), ValueError, "length is -5, expected"),
        (lambda: OmniMask.cache_seqlens(torch.tensor([4, 9]), 1, 8), ValueError, r"cache_seqlens is \[4, 9\], .* 8"),
        (lambda: OmniMask.cache_seqlens(torch.tensor([-1]), 1, 8), ValueError, "cache_seqlens is .* 0 to slots, 8"),
        (lambda: OmniMask.cache_seqlens(torch.tensor(3), 1, 8), ValueError, r"cache_seqlens has shape \[\]"),
        (lambda: OmniMask.from_cu_seqlens(torch.tensor([0]), 5), ValueError, r"cu_seqlens has shape \[1\], expected"),
        (lambda: OmniMask.from_cu_seqlens(torch.tensor([1, 5]), 5), ValueError, r"cu_seqlens is \[1, 5\], .* from 0"),
        (lambda: OmniMask.from_cu_seqlens(torch.tensor([0, 4, 3]), 5), ValueError, "cu_seqlens is .* rise"),
        (lambda: OmniMask.from_cu_seqlens(torch.tensor([0, 6]), 5), ValueError, "cu_seqlens is .* at most 5"),
        (
            lambda: OmniMask.from_cu_seqlens(torch.tensor([0, 5]), 5, kv_cu_seqlens=torch.tensor([0, 2, 5])),
            ValueError,
            r"kv_cu_seqlens has shape \[3\], expected \[2\], the shape of cu_seqlens",
        ),
        (lambda: OmniMask.from_cu_seqlens(torch.tensor([0.0, 5.0]), 5), TypeError, "cu_seqlens has dtype float32"),
    ],
)
def test_bad_lengths(make, error, message):
    with pytest.raises(error, match=message):
        make()
