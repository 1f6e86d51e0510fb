"""Kernels that nvcc compiled, against numpy: what real kernels are made of."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.device import Out


@pytest.fixture(scope="module")
def basics(compiled):
    return compiled("basics.cu")


def test_tail_predicate(basics, rng) -> None:
    for n in (1, 31, 64, 100):
        x, y = rng.standard_normal((2, n)).astype(np.float32)
        expected = (2.5 * x.astype(np.float64) + y).astype(np.float32)
        basics.launch("axpy", grid=(n + 63) // 64, block=64, args=[y, x, 2.5, n])
        np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("block", [32, 64, 256])
def test_tree_reduction(basics, rng, block: int) -> None:
    x = rng.integers(-50, 50, 1000).astype(np.float32)
    blocks = -(-x.size // block)
    out = np.zeros(blocks, np.float32)
    basics.launch("tree_sum", grid=blocks, block=block, args=[Out(out), x, x.size], shared=4 * block)
    np.testing.assert_array_equal(out, np.pad(x, (0, blocks * block - x.size)).reshape(blocks, block).sum(1))


def test_shuffle_reduction(basics, rng) -> None:
    x = rng.integers(-50, 50, 3001).astype(np.float32)
    out = np.zeros(1, np.float32)
    counters = basics.launch("shuffle_sum", grid=1, block=256, args=[Out(out), x, x.size])
    assert out[0] == x.sum()
    assert counters.warps("shuffle") == 8 * 5 + 5


def test_divergent_loop(basics, rng) -> None:
    start = rng.integers(1, 3000, 200).astype(np.int32)

    def steps(v: int) -> int:
        count = 0
        while v != 1 and count < 500:
            v, count = (v // 2 if v % 2 == 0 else 3 * v + 1), count + 1
        return count

    out = np.zeros(200, np.int32)
    counters = basics.launch("collatz", grid=4, block=64, args=[Out(out), start, 200])
    np.testing.assert_array_equal(out, [steps(int(v)) for v in start])
    assert counters.divergent_branches > 0


def test_lanes_meet_again_after_early_returns(basics) -> None:
    x = np.arange(32, dtype=np.int32) * 5
    out = np.zeros(32, np.int32)
    basics.launch("early_exit", grid=1, block=32, args=[Out(out), x])
    left = x <= 100
    total = np.where(x > 10, x + 1000, x + 1)[left].sum() + left.sum()
    np.testing.assert_array_equal(out, np.where(left, total, -1))


def test_histogram(basics, rng) -> None:
    x = rng.integers(0, 256, 5000).astype(np.uint8)
    out = np.zeros(256, np.uint32)
    basics.launch("histogram", grid=3, block=256, args=[out, x, x.size])
    np.testing.assert_array_equal(out, np.bincount(x, minlength=256))


def test_float_and_wide_atomics(basics, rng) -> None:
    x = rng.integers(-100, 100, 700).astype(np.float32)
    total, largest, count = np.zeros(1, np.float32), np.full(1, -(2**31), np.int32), np.zeros(1, np.uint64)
    basics.launch("float_atomics", grid=6, block=128, args=[total, largest, count, x, x.size])
    assert (total[0], largest[0], count[0]) == (x.sum(), x.max(), x.size)


def test_packed_half_atomics(basics) -> None:
    n = 100
    x = np.tile(np.array([1.0, -2.0], np.float16), n)
    b = np.tile((np.array([1.0, 0.5], np.float32).view(np.uint32) >> 16).astype(np.uint16), n)
    total, btotal = np.zeros(2, np.float16), np.zeros(2, np.uint16)
    basics.launch("half2_sum", grid=1, block=128, args=[total, btotal, x, b, n])
    np.testing.assert_array_equal(total, [n, -2 * n])
    np.testing.assert_array_equal((btotal.astype(np.uint32) << 16).view(np.float32), [n, n / 2])


def test_calls(basics, rng) -> None:
    x = rng.uniform(-1, 1, 77).astype(np.float32)
    c = rng.uniform(-1, 1, 5).astype(np.float32)

    def polynomial(v: np.ndarray) -> np.ndarray:
        return np.polyval(c[::-1].astype(np.float64), v)

    out = np.zeros_like(x)
    basics.launch("calls", grid=2, block=64, args=[Out(out), x, c, 5, x.size])
    np.testing.assert_allclose(out, np.where(x > 0, polynomial(polynomial(x)), polynomial(x)), rtol=1e-4, atol=1e-5)


def test_switch(basics, rng) -> None:
    n = 300
    op = rng.integers(0, 11, n).astype(np.int32)
    a, b = rng.integers(-1000, 1000, (2, n)).astype(np.int32)

    def one(o: int, x: int, y: int) -> int:
        match o:
            case 0:
                return x + y
            case 1:
                return x - y
            case 2:
                return x * y
            case 3:
                return int(x / y) if y else 0
            case 4:
                return x & y
            case 5:
                return bin(x & 0xFFFFFFFF).count("1")
            case 6:
                return 32 - (y & 0xFFFFFFFF).bit_length()
            case 7:
                return x << (y & 31)
            case 8:
                return max(x, y)
        return -1

    expected = np.array([one(int(o), int(x), int(y)) & 0xFFFFFFFF for o, x, y in zip(op, a, b)], np.uint32).view(
        np.int32
    )
    out = np.zeros(n, np.int32)
    basics.launch("switches", grid=5, block=64, args=[Out(out), op, a, b, n])
    np.testing.assert_array_equal(out, expected)


def test_division_of_64_bit_integers(basics, rng) -> None:
    n = 200
    a = rng.integers(-(2**62), 2**62, n)
    b = np.where(np.arange(n) % 2, rng.integers(1, 2**40, n), rng.integers(-(2**31), -1, n))
    q, r = np.zeros(n, np.int64), np.zeros(n, np.int64)
    basics.launch("divide64", grid=4, block=64, args=[Out(q), Out(r), a, b, n])
    expected = np.array([abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b)])
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(r, a - expected * b)


def test_philox(basics) -> None:
    """Known answers of Philox4x32-10 (counter 0, key 0) and a rerun of the rounds in Python."""

    def philox(counter: int, key: tuple[int, int]) -> list[int]:
        c, k = [counter, 0, 0, 0], list(key)
        for _ in range(10):
            p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
            k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
        return c

    out = np.zeros((50, 4), np.uint32)
    basics.launch("philox", grid=2, block=32, args=[Out(out), 0, 0, 50])
    assert [hex(v) for v in out[0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    basics.launch("philox", grid=2, block=32, args=[Out(out), 123, 0x80000001, 50])
    np.testing.assert_array_equal(out, [philox(i, (123, 0x80000001)) for i in range(50)])


def test_radix_select(basics, rng) -> None:
    x = rng.integers(0, 2**32, 500, dtype=np.uint64).astype(np.uint32)
    x[::3] = x[0]
    out = np.zeros(1, np.uint32)
    for k in (0, 17, 250, 499):
        basics.launch("radix_select", grid=1, block=128, args=[Out(out), x, x.size, k])
        assert out[0] == np.sort(x)[k]


def test_transposed_ldmatrix(basics) -> None:
    tile = np.arange(64, dtype=np.uint16)
    out = np.zeros(64, np.uint16)
    basics.launch("transposed_load", grid=1, block=32, args=[Out(out), tile])
    np.testing.assert_array_equal(out.reshape(8, 8), tile.reshape(8, 8).T)


def test_tf32_product(basics, rng) -> None:
    a, b = rng.integers(-60, 60, (16, 8)).astype(np.float32), rng.integers(-60, 60, (8, 8)).astype(np.float32)
    d = np.zeros((16, 8), np.float32)
    basics.launch("tf32_product", grid=1, block=32, args=[Out(d), a, b])
    np.testing.assert_array_equal(d, a @ b)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 127, 128])
def test_cp_async_fills_with_zeros(basics, rng, n: int) -> None:
    x = rng.standard_normal(n).astype(np.float32)
    out = np.zeros(128, np.float32)
    basics.launch("zero_fill", grid=1, block=32, args=[Out(out), x, n])
    np.testing.assert_array_equal(out, np.pad(x, (0, 128 - n)))


def test_named_barriers_and_block_votes(basics, rng) -> None:
    x = rng.integers(0, 100, 128).astype(np.int32)
    x[5] = 77
    out = np.zeros((4, 128), np.int32)
    basics.launch("named_barriers", grid=1, block=128, args=[Out(out), x])
    i = np.arange(128)
    np.testing.assert_array_equal(out[0], x[i // 64 * 64 + (i + 32) % 64] + i // 64 * 3)
    assert set(out[1]) == {int((x % 3 == 0).sum())}
    assert out[2].all()
    assert out[3].all()


def test_producer_and_consumers(basics, rng) -> None:
    x = rng.integers(0, 100, 32).astype(np.int32)
    out = np.zeros(96, np.int32)
    basics.launch("producer", grid=2, block=128, args=[Out(out), x])
    np.testing.assert_array_equal(out, np.tile(x, 3))


def test_last_block_sums_the_others(basics, rng) -> None:
    x = rng.integers(-9, 9, 1000).astype(np.float32)
    out, partial = np.zeros(1, np.float32), np.zeros(7, np.float32)
    for _ in range(2):  # the ticket in device memory is set back
        basics.launch("last_block", grid=7, block=64, args=[Out(out), Out(partial), x, x.size])
        assert out[0] == (x * np.tile([1, 10, 100, 1000], 250)).sum()


def test_generic_pointers(basics) -> None:
    x = np.arange(32, dtype=np.int32) * 7
    i = np.arange(32)
    out = np.zeros(32, np.int32)
    basics.launch("generic_pointers", grid=1, block=32, args=[Out(out), x, 2])
    np.testing.assert_array_equal(out, np.where(i % 3 == 0, x, np.where(i % 3 == 1, 100 + i, 3 + i)))


def bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(("kernel", "wavefronts_per_row_group"), [("gemm_swizzled", 1), ("gemm_plain", 4)])
def test_gemm(compiled, rng, kernel: str, wavefronts_per_row_group: int) -> None:
    m, n, k = 128, 64, 96
    a, b = rng.integers(-30, 30, (m, k)), rng.integers(-30, 30, (n, k))
    c = np.zeros((m, n), np.float32)
    counters = compiled("gemm.cu").launch(
        kernel, grid=(n // 64, m // 64), block=128, args=[Out(c), bf16(a), bf16(b), m, n, k]
    )
    np.testing.assert_array_equal(c, a @ b.T)
    # Per warp and 16 columns of k: four ldmatrix.x4 of four groups of eight rows, and eight mma.
    steps = (m // 64) * (n // 64) * 4 * (k // 16)
    assert counters.shared_wavefronts == [steps * 16 * wavefronts_per_row_group, steps * 16]
    assert counters.warps("mma") == steps * 8
    assert counters.mma_flops == 2 * m * n * k
    assert counters.warps("ldmatrix") == steps * 4
    assert counters.global_sectors[0] == counters.global_sectors[1]
    assert counters.tensor("arg1")["read"] == a.size * 2
    assert counters.tensor("arg0") == {
        "name": "arg0",
        "bytes": c.nbytes,
        "read": 0,
        "written": c.nbytes,
        "never_written": 0,
    }
