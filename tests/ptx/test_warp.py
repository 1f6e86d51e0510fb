"""Instructions in which the lanes of a warp see each other, against loops over lanes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.device import Finding
from tests.ptx.snippets import apply

FULL = "0xffffffff"


def lanes(rng: np.random.Generator, high: int = 1 << 32) -> np.ndarray:
    return rng.integers(0, high, 64, dtype=np.uint64).astype(np.uint32)


def shuffled(x: np.ndarray, mode: str, by: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """The pseudocode of shfl.sync in the PTX ISA, lane by lane."""
    value, valid = np.empty_like(x), np.empty_like(x)
    clamp, segment = c & 31, c >> 8 & 31
    for base in range(0, x.size, 32):
        for lane in range(32):
            last = (lane & segment) | (clamp & ~segment & 31)
            first = lane & segment
            j = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment & 31)}[mode]
            ok = j >= last if mode == "up" else j <= last
            value[base + lane] = x[base + (j if ok else lane)]
            valid[base + lane] = ok
    return value, valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 2])
@pytest.mark.parametrize("by", [0, 1, 3, 8, 21])
def test_shuffle(mode: str, width: int, by: int, rng: np.random.Generator) -> None:
    x = lanes(rng)
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    value, valid = shuffled(x, mode, by, c)
    got = apply(f"shfl.sync.{mode}.b32 {{d}}, {{0}}, {by}, {c}, {FULL};", x, out=np.uint32)
    np.testing.assert_array_equal(got, value)
    code = f"shfl.sync.{mode}.b32 %r30|%p1, {{0}}, {by}, {c}, {FULL}; selp.u32 {{d}}, 1, 0, %p1;"
    np.testing.assert_array_equal(apply(code, x, out=np.uint32), valid)


def test_vote(rng: np.random.Generator) -> None:
    for x in (lanes(rng, 2), np.zeros(64, np.uint32), np.ones(64, np.uint32)):
        test = "setp.ne.u32 %p1, {0}, 0; "
        ballots = np.repeat([sum(int(v) << i for i, v in enumerate(w)) for w in x.reshape(2, 32)], 32).astype(np.uint32)
        got = apply(test + f"vote.sync.ballot.b32 {{d}}, %p1, {FULL};", x, out=np.uint32)
        np.testing.assert_array_equal(got, ballots)
        for mode, fold in {"all": np.all, "any": np.any}.items():
            expected = np.repeat([fold(w) for w in x.reshape(2, 32)], 32).astype(np.uint32)
            code = test + f"vote.sync.{mode}.pred %p2, %p1, {FULL}; selp.u32 {{d}}, 1, 0, %p2;"
            np.testing.assert_array_equal(apply(code, x, out=np.uint32), expected)
        code = test + f"vote.sync.all.pred %p2, !%p1, {FULL}; selp.u32 {{d}}, 1, 0, %p2;"
        expected = np.repeat([not np.any(w) for w in x.reshape(2, 32)], 32).astype(np.uint32)
        np.testing.assert_array_equal(apply(code, x, out=np.uint32), expected)


def test_match(rng: np.random.Generator) -> None:
    x = lanes(rng, 5)
    expected = [sum((x[base + j] == x[base + i]) << j for j in range(32)) for base in (0, 32) for i in range(32)]
    got = apply(f"match.any.sync.b32 {{d}}, {{0}}, {FULL};", x, out=np.uint32)
    np.testing.assert_array_equal(got, np.array(expected, np.uint32))
    same = np.full(64, 9, np.uint32)
    code = f"match.all.sync.b32 %r30|%p1, {{0}}, {FULL}; selp.b32 {{d}}, %r30, 77, %p1;"
    np.testing.assert_array_equal(apply(code, same, out=np.uint32), np.full(64, 0xFFFFFFFF, np.uint32))
    np.testing.assert_array_equal(apply(code, x, out=np.uint32), np.full(64, 77, np.uint32))


@pytest.mark.parametrize(
    ("op", "dtype", "fold"),
    [
        ("add.u32", np.uint32, np.add),
        ("min.s32", np.int32, np.minimum),
        ("max.u32", np.uint32, np.maximum),
        ("and.b32", np.uint32, np.bitwise_and),
        ("xor.b32", np.uint32, np.bitwise_xor),
    ],
)
def test_redux(op: str, dtype: type, fold: np.ufunc, rng: np.random.Generator) -> None:
    x = lanes(rng).view(dtype)
    expected = np.repeat(fold.reduce(x.reshape(2, 32), axis=1, dtype=dtype), 32)
    np.testing.assert_array_equal(apply(f"redux.sync.{op} {{d}}, {{0}}, {FULL};", x, out=dtype), expected)


def test_groups_of_lanes_vote_apart() -> None:
    x = np.arange(32, dtype=np.uint32)
    code = """and.b32 %r20, {0}, 16; setp.ne.u32 %p1, %r20, 0; selp.b32 %r21, 0xffff0000, 0x0000ffff, %p1;
        and.b32 %r22, {0}, 1; setp.ne.u32 %p2, %r22, 0; vote.sync.ballot.b32 {d}, %p2, %r21;"""
    expected = np.where(x < 16, 0x0000AAAA, 0xAAAA0000).astype(np.uint32)
    np.testing.assert_array_equal(apply(code, x, out=np.uint32), expected)


@pytest.mark.parametrize("size", [32, 40])
def test_absent_lanes_are_findings(size: int) -> None:
    """A member mask that names lanes on another path, or lanes that a short block does not have."""
    x = np.arange(size, dtype=np.uint32)
    if size == 40:
        with pytest.raises(Finding, match="absent-lane") as caught:
            apply(f"shfl.sync.bfly.b32 {{d}}, {{0}}, 1, 31, {FULL};", x, out=np.uint32)
        assert "has exited" in str(caught.value)
        return
    code = f"mov.u32 {{d}}, 0; setp.lt.u32 %p1, {{0}}, 16; @%p1 shfl.sync.bfly.b32 {{d}}, {{0}}, 1, 31, {FULL};"
    with pytest.raises(Finding, match="absent-lane"):
        apply(code, x, out=np.uint32)
    code = "mov.u32 {d}, 0; setp.lt.u32 %p1, {0}, 16; @%p1 shfl.sync.bfly.b32 {d}, {0}, 1, 31, 0xffff;"
    np.testing.assert_array_equal(apply(code, x, out=np.uint32), np.where(x < 16, x ^ 1, 0))


def test_mask_must_name_the_lane_itself() -> None:
    with pytest.raises(Finding, match="sync-mask"):
        apply("vote.sync.ballot.b32 {d}, %p0, 1;", np.arange(32, dtype=np.uint32), out=np.uint32)


def test_active_mask_and_lane_registers() -> None:
    x = np.arange(64, dtype=np.uint32)
    np.testing.assert_array_equal(apply("mov.u32 {d}, %laneid;", x, out=np.uint32), x % 32)
    np.testing.assert_array_equal(apply("mov.u32 {d}, %lanemask_lt;", x, out=np.uint32), (1 << (x % 32)) - 1)
    code = "mov.u32 {d}, 5; setp.lt.u32 %p1, {0}, 3; @%p1 activemask.b32 {d};"
    np.testing.assert_array_equal(apply(code, x, out=np.uint32), np.where(x < 3, 7, 5))
