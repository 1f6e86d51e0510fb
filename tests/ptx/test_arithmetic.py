"""Single instructions against numpy and exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.device import EmulatorError, Finding, Module
from tests.ptx.snippets import HEADER, apply, snippet_ptx

INTEGERS = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}


def integers(rng: np.random.Generator, dtype: np.typing.DTypeLike, n: int = 300) -> np.ndarray:
    info = np.iinfo(dtype)
    edges = [info.min, info.max, 0, 1, 2, info.max - 1, info.max // 2, 7]
    values = [int(v) for v in rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)]
    small = [int(v) for v in rng.integers(0, 9, n)]
    return np.array([edges[v] if v < len(edges) else w for v, w in zip(small, values)], dtype)


def floats(rng: np.random.Generator, dtype: np.typing.DTypeLike = np.float32, n: int = 300) -> np.ndarray:
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype)
    x[:10] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, np.finfo(dtype).tiny / 4, np.finfo(dtype).max, 0.5]
    return rng.permutation(x)


def wrap(values: list[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    bits = np.dtype(dtype).itemsize * 8
    unsigned = np.array([v % (1 << bits) for v in values], np.dtype(f"u{bits // 8}"))
    return unsigned.view(dtype)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, any nan being as good as another."""
    if actual.dtype.kind == "f":
        nans = np.isnan(actual)
        np.testing.assert_array_equal(nans, np.isnan(expected))
        unsigned = np.dtype(f"u{actual.itemsize}")
        np.testing.assert_array_equal(actual[~nans].view(unsigned), expected[~nans].view(unsigned))
    else:
        np.testing.assert_array_equal(actual, expected)


def truncated(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


@pytest.mark.parametrize("type_", INTEGERS)
def test_integer_arithmetic(type_: str, rng: np.random.Generator) -> None:
    dtype = INTEGERS[type_]
    bits = np.dtype(dtype).itemsize * 8
    a, b, c = (integers(rng, dtype) for _ in range(3))
    triples = [(int(x), int(y), int(z)) for x, y, z in zip(a, b, c)]
    for name, exact in {
        "add": lambda x, y, z: x + y,
        "sub": lambda x, y, z: x - y,
        "mul.lo": lambda x, y, z: x * y,
        "mul.hi": lambda x, y, z: (x * y) >> bits,
        "min": lambda x, y, z: min(x, y),
        "max": lambda x, y, z: max(x, y),
    }.items():
        same(apply(f"{name}.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), wrap([exact(*t) for t in triples], dtype))
    for name, exact in {
        "mad.lo": lambda x, y, z: x * y + z,
        "mad.hi": lambda x, y, z: ((x * y) >> bits) + z,
        "sad": lambda x, y, z: z + abs(x - y),
    }.items():
        expected = wrap([exact(*t) for t in triples], dtype)
        same(apply(f"{name}.{type_} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c, out=dtype), expected)
    nonzero = np.where(b == 0, dtype(3), b)
    pairs = [(int(x), int(y)) for x, y in zip(a, nonzero)]
    same(
        apply(f"div.{type_} {{d}}, {{0}}, {{1}};", a, nonzero, out=dtype),
        wrap([truncated(x, y) for x, y in pairs], dtype),
    )
    remainders = wrap([x - y * truncated(x, y) for x, y in pairs], dtype)
    same(apply(f"rem.{type_} {{d}}, {{0}}, {{1}};", a, nonzero, out=dtype), remainders)


@pytest.mark.parametrize(
    ("type_", "wide"), [("u16", np.uint32), ("s16", np.int32), ("u32", np.uint64), ("s32", np.int64)]
)
def test_wide_products(type_: str, wide: type, rng: np.random.Generator) -> None:
    a, b = integers(rng, INTEGERS[type_]), integers(rng, INTEGERS[type_])
    c = integers(rng, wide)
    products = [int(x) * int(y) for x, y in zip(a, b)]
    same(apply(f"mul.wide.{type_} {{d}}, {{0}}, {{1}};", a, b, out=wide), wrap(products, wide))
    sums = wrap([p + int(z) for p, z in zip(products, c)], wide)
    same(apply(f"mad.wide.{type_} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c, out=wide), sums)


@pytest.mark.parametrize(("type_", "bits"), [("b32", 32), ("b64", 64)])
def test_bits(type_: str, bits: int, rng: np.random.Generator) -> None:
    dtype = np.uint32 if bits == 32 else np.uint64
    a, b = integers(rng, dtype), integers(rng, dtype)
    counts = rng.integers(0, 80, a.size).astype(np.uint32)
    lengths = rng.integers(0, 80, a.size).astype(np.uint32)
    top = 1 << bits
    same(
        apply(f"popc.{type_} {{d}}, {{0}};", a, out=np.uint32), np.array([bin(int(x)).count("1") for x in a], np.uint32)
    )
    same(
        apply(f"clz.{type_} {{d}}, {{0}};", a, out=np.uint32),
        np.array([bits - int(x).bit_length() for x in a], np.uint32),
    )
    reverse = [int(format(int(x), f"0{bits}b")[::-1], 2) for x in a]
    same(apply(f"brev.{type_} {{d}}, {{0}};", a, out=dtype), np.array(reverse, dtype))
    shifted = [(int(x) << int(n)) % top if n < bits else 0 for x, n in zip(a, counts)]
    same(apply(f"shl.{type_} {{d}}, {{0}}, {{1}};", a, counts, out=dtype), np.array(shifted, dtype))
    signed = a.view(np.int32 if bits == 32 else np.int64)
    right = [int(x) >> min(int(n), bits - 1) for x, n in zip(signed, counts)]
    same(apply(f"shr.s{bits} {{d}}, {{0}}, {{1}};", signed, counts, out=signed.dtype), np.array(right, signed.dtype))
    same(apply(f"xor.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), a ^ b)

    def inserted(x: int, y: int, p: int, n: int) -> int:
        ones = ((1 << n) - 1) << p
        return (y & ~ones | x << p & ones) % top

    expected = [inserted(int(x), int(y), int(p), int(n)) for x, y, p, n in zip(a, b, counts, lengths)]
    same(
        apply(f"bfi.{type_} {{d}}, {{0}}, {{1}}, {{2}}, {{3}};", a, b, counts, lengths, out=dtype),
        np.array(expected, dtype),
    )

    def extracted(x: int, p: int, n: int) -> int:
        if n == 0:
            return 0
        sign = x >> min(p + n - 1, bits - 1) & 1
        field = (x >> p) & ((1 << min(n, max(bits - p, 0))) - 1)
        present = min(n, max(bits - p, 0))
        return field | (((1 << bits) - 1) >> present << present if sign else 0)

    fields = [extracted(int(x), int(p), int(n)) for x, p, n in zip(a, counts, lengths)]
    same(apply(f"bfe.s{bits} {{d}}, {{0}}, {{1}}, {{2}};", a, counts, lengths, out=dtype), np.array(fields, dtype))


def test_logic_and_permutation(rng: np.random.Generator) -> None:
    a, b, c = (integers(rng, np.uint32) for _ in range(3))
    for table in (0x80, 0xFE, 0x96, 0xE8, 0x1D, 0xCA, 0x01):
        expected = np.zeros_like(a)
        for k in range(8):
            if table >> k & 1:
                expected |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        same(apply(f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table};", a, b, c, out=np.uint32), expected)

    def permuted(x: int, y: int, selector: int) -> int:
        octets = [x >> 8 * k & 255 for k in range(4)] + [y >> 8 * k & 255 for k in range(4)]
        result = 0
        for k in range(4):
            s = selector >> 4 * k & 15
            octet = octets[s & 7]
            result |= ((255 if octet & 128 else 0) if s & 8 else octet) << 8 * k
        return result

    expected = np.array([permuted(int(x), int(y), int(z)) for x, y, z in zip(a, b, c)], np.uint32)
    same(apply("prmt.b32 {d}, {0}, {1}, {2};", a, b, c, out=np.uint32), expected)
    pairs = [int(y) << 32 | int(x) for x, y in zip(a, b)]
    left = np.array([(p << (int(n) & 31)) >> 32 & 0xFFFFFFFF for p, n in zip(pairs, c)], np.uint32)
    same(apply("shf.l.wrap.b32 {d}, {0}, {1}, {2};", a, b, c, out=np.uint32), left)
    right = np.array([p >> min(int(n), 32) & 0xFFFFFFFF for p, n in zip(pairs, c % 40)], np.uint32)
    same(apply("shf.r.clamp.b32 {d}, {0}, {1}, {2};", a, b, c % 40, out=np.uint32), right)
    same(
        apply("selp.b32 %r30, 1, 0, %p1; setp.lt.u32 %p1, {0}, {1}; selp.b32 {d}, {0}, {1}, %p1;", a, b, out=np.uint32),
        np.minimum(a, b),
    )


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_float_arithmetic(type_: str, rng: np.random.Generator) -> None:
    dtype = np.float32 if type_ == "f32" else np.float64
    a, b, c = (floats(rng, dtype) for _ in range(3))
    with np.errstate(all="ignore"):
        same(apply(f"add.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), a + b)
        same(apply(f"sub.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), a - b)
        same(apply(f"mul.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), a * b)
        same(apply(f"div.rn.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype), a / b)
        same(apply(f"sqrt.rn.{type_} {{d}}, {{0}};", a, out=dtype), np.sqrt(a))
        same(apply(f"abs.{type_} {{d}}, {{0}};", a, out=dtype), np.abs(a))
        same(apply(f"neg.{type_} {{d}}, {{0}};", a, out=dtype), -a)
        plain = ~((a == 0) & (b == 0))
        same(apply(f"min.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype)[plain], np.fmin(a, b)[plain])
        same(apply(f"max.{type_} {{d}}, {{0}}, {{1}};", a, b, out=dtype)[plain], np.fmax(a, b)[plain])
        for name, compare in {"lt": np.less, "ge": np.greater_equal, "eq": np.equal, "neu": np.not_equal}.items():
            got = apply(f"setp.{name}.{type_} %p1, {{0}}, {{1}}; selp.u32 {{d}}, 1, 0, %p1;", a, b, out=np.uint32)
            same(got, compare(a, b).astype(np.uint32))
        got = apply(f"setp.nan.{type_} %p1, {{0}}, {{1}}; selp.u32 {{d}}, 1, 0, %p1;", a, b, out=np.uint32)
        same(got, (np.isnan(a) | np.isnan(b)).astype(np.uint32))
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    fused = apply(f"fma.rn.{type_} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c, out=dtype)
    for x, y, z, got in zip(a[finite], b[finite], c[finite], fused[finite]):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        if np.isfinite(got):
            with np.errstate(over="ignore"):
                neighbours = [np.nextafter(got, dtype(np.inf)), np.nextafter(got, dtype(-np.inf))]
            error = abs(Fraction(float(got)) - exact)
            assert all(not np.isfinite(m) or error <= abs(Fraction(float(m)) - exact) for m in neighbours)


def test_flush_and_saturate() -> None:
    tiny = np.array([1e-40, -1e-40, 1.0, 2.0, -3.0, np.nan], np.float32)
    one = np.ones_like(tiny)
    same(
        apply("mul.ftz.f32 {d}, {0}, {1};", tiny, one, out=np.float32),
        np.array([0.0, -0.0, 1, 2, -3, np.nan], np.float32),
    )
    same(apply("add.sat.f32 {d}, {0}, 0f00000000;", tiny, out=np.float32), np.array([1e-40, 0, 1, 1, 0, 0], np.float32))


def test_nan_propagating_minimum() -> None:
    a = np.array([1.0, np.nan, 2.0, -3.0], np.float32)
    b = np.array([np.nan, 1.0, -1.0, 1e-40], np.float32)
    same(apply("min.NaN.f32 {d}, {0}, {1};", a, b, out=np.float32), np.array([np.nan, np.nan, -1, -3], np.float32))
    same(apply("max.ftz.NaN.f32 {d}, {0}, {1};", a, b, out=np.float32), np.array([np.nan, np.nan, 2, 0], np.float32))


def test_dot_products_of_bytes(rng: np.random.Generator) -> None:
    a, b = (rng.integers(-128, 128, (50, 4)).astype(np.int8) for _ in range(2))
    c = rng.integers(-1000, 1000, 50).astype(np.int32)
    words = (a.reshape(-1).view(np.uint32), b.reshape(-1).view(np.uint32))
    expected = (a.astype(np.int32) * b.astype(np.int32)).sum(1).astype(np.int32) + c
    same(apply("dp4a.s32.s32 {d}, {0}, {1}, {2};", *words, c, out=np.int32), expected)
    expected = (a.view(np.uint8).astype(np.int32) * b.view(np.uint8).astype(np.int32)).sum(1).astype(np.int32) + c
    same(apply("dp4a.u32.u32 {d}, {0}, {1}, {2};", *words, c, out=np.int32), expected)


def test_directed_rounding(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(300).astype(np.float32) for _ in range(2))
    exact = {"add": a.astype(np.float64) + b, "mul": a.astype(np.float64) * b}
    for name, values in exact.items():
        down = apply(f"{name}.rm.f32 {{d}}, {{0}}, {{1}};", a, b, out=np.float32).astype(np.float64)
        up = apply(f"{name}.rp.f32 {{d}}, {{0}}, {{1}};", a, b, out=np.float32).astype(np.float64)
        zero = apply(f"{name}.rz.f32 {{d}}, {{0}}, {{1}};", a, b, out=np.float32).astype(np.float64)
        assert np.all(down <= values)
        assert np.all(up >= values)
        assert np.all(np.abs(up - down) <= np.spacing(np.abs(values).astype(np.float32)) * 1.01)
        same(zero, np.where(values > 0, down, up))


# ---- fp16 and bf16 ---------------------------------------------------------------------------------------------------


def bf16_value(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def nearest_half(value: Fraction, kind: str) -> int:
    """Bits of the nearest finite half (ties to even), found among the neighbours of a first guess."""
    if kind == "f16":
        guess = int(np.float16(float(value)).view(np.uint16))
        load = lambda b: Fraction(float(np.uint16(b).view(np.float16)))  # noqa: E731
    else:
        guess = int(np.float32(float(value)).view(np.uint32)) >> 16
        load = lambda b: Fraction(float(bf16_value(np.array([b], np.uint16))[0]))  # noqa: E731
    best = min(
        (abs(load(b) - value), b & 1, b) for b in range(max((guess & 0x7FFF) - 2, 0) | guess & 0x8000, guess + 3)
    )
    return best[2]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_arithmetic(kind: str, rng: np.random.Generator) -> None:
    def draw() -> np.ndarray:
        x = (rng.standard_normal(256) * 2.0 ** rng.integers(-8, 6, 256)).astype(np.float32)
        return x.astype(np.float16).view(np.uint16) if kind == "f16" else (x.view(np.uint32) >> 16).astype(np.uint16)

    def value(bits: np.ndarray) -> list[Fraction]:
        x = bits.view(np.float16) if kind == "f16" else bf16_value(bits)
        return [Fraction(float(v)) for v in x]

    a, b, c = draw(), draw(), draw()
    exact = [x * y + z for x, y, z in zip(value(a), value(b), value(c))]
    expected = np.array([nearest_half(v, kind) for v in exact], np.uint16)
    got = apply(f"fma.rn.{kind} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c, out=np.uint16)
    nonzero = np.array([v != 0 for v in exact])
    same(got[nonzero], expected[nonzero])
    packed = [x[0::2] | x[1::2].astype(np.uint32) << 16 for x in (a, b, c)]
    both = apply(f"fma.rn.{kind}x2 {{d}}, {{0}}, {{1}}, {{2}};", *packed, out=np.uint32)
    same(both, got[0::2] | got[1::2].astype(np.uint32) << 16)
    relu = apply(f"fma.rn.relu.{kind} {{d}}, {{0}}, {{1}}, {{2}};", a, b, c, out=np.uint16)
    same(relu, np.where(got & 0x8000, 0, got).astype(np.uint16))
    if kind == "f16":
        x, y = a.view(np.float16), b.view(np.float16)
        same(apply("add.f16 {d}, {0}, {1};", x, y, out=np.float16), x + y)
        same(apply("mul.f16 {d}, {0}, {1};", x, y, out=np.float16), x * y)
        same(apply("min.f16 {d}, {0}, {1};", x, y, out=np.float16), np.minimum(x, y))
        halves = apply("add.f16x2 {d}, {0}, {1};", packed[0], packed[1], out=np.uint32)
        same(halves.view(np.float16), x + y)


def test_conversions(rng: np.random.Generator) -> None:
    x = floats(rng, n=2000)
    with np.errstate(all="ignore"):
        same(apply("cvt.rn.f16.f32 {d}, {0};", x, out=np.float16), x.astype(np.float16))
        every = np.arange(65536, dtype=np.uint16)
        same(apply("cvt.f32.f16 {d}, {0};", every, out=np.float32), every.view(np.float16).astype(np.float32))
        back = apply("cvt.rn.f16.f32 {d}, {0};", every.view(np.float16).astype(np.float32), out=np.float16)
        same(back, every.view(np.float16))
        bits = x.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        got = apply("cvt.rn.bf16.f32 {d}, {0};", x, out=np.uint16)
        same(got[~np.isnan(x)], rounded[~np.isnan(x)])
        packed = apply("cvt.rn.bf16x2.f32 {d}, {0}, {1};", x, x[::-1].copy(), out=np.uint32)
        same((packed >> 16).astype(np.uint16), got)
        same((packed & 0xFFFF).astype(np.uint16), got[::-1])
        tf32 = apply("cvt.rna.tf32.f32 {d}, {0};", x, out=np.float32)
        plain = np.isfinite(x) & (np.abs(x) > 1e-30) & (np.abs(x) < 1e30)
        assert np.max(np.abs(tf32[plain] / x[plain] - 1)) <= 2.0**-11
        assert not np.any(tf32.view(np.uint32) & 0x1FFF)
        clean = np.nan_to_num(x, nan=0.0, posinf=1e30, neginf=-1e30).astype(np.float64)
        same(
            apply("cvt.rzi.s32.f32 {d}, {0};", x, out=np.int32),
            np.trunc(clean).clip(-(2**31), 2**31 - 1).astype(np.int32),
        )
        same(
            apply("cvt.rmi.s32.f32 {d}, {0};", x, out=np.int32),
            np.floor(clean).clip(-(2**31), 2**31 - 1).astype(np.int32),
        )
        same(apply("cvt.rni.f32.f32 {d}, {0};", x, out=np.float32), np.rint(x))
        wide = integers(rng, np.int64)
        same(apply("cvt.rn.f32.s64 {d}, {0};", wide, out=np.float32), wide.astype(np.float32))
        same(apply("cvt.u32.s64 {d}, {0};", wide, out=np.uint32), wide.astype(np.uint32))
        same(apply("cvt.sat.s16.s64 {d}, {0};", wide, out=np.int16), wide.clip(-(2**15), 2**15 - 1).astype(np.int16))
        low = integers(rng, np.int32)
        same(apply("cvt.s64.s8 {d}, {0};", low, out=np.int64), low.astype(np.int8).astype(np.int64))
        # A source register may be wider than the source type; the low bits count. So nvcc narrows 64-bit values.
        same(apply("cvt.u32.u16 {d}, {0};", wide, out=np.uint32), wide.astype(np.uint16).astype(np.uint32))
        same(apply("cvt.s32.s8 {d}, {0};", wide, out=np.int32), wide.astype(np.int8).astype(np.int32))
        same(apply("cvt.rn.f32.s32 {d}, {0};", wide, out=np.float32), wide.astype(np.int32).astype(np.float32))
        down = apply("cvt.rz.f32.f64 {d}, {0};", np.array([0.1, -0.1, 1 / 3]), out=np.float32)
        assert down[0] < 0.1
        assert down[1] > -0.1
        assert down[2] < 1 / 3


def test_packing(rng: np.random.Generator) -> None:
    a, b = integers(rng, np.uint32), integers(rng, np.uint32)
    same(
        apply("mov.b64 {d}, {{{0}, {1}}};", a, b, out=np.uint64),
        a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32),
    )
    same(apply("mov.b32 {{%h1, %h2}}, {0}; mov.b32 {d}, {{%h2, %h1}};", a, out=np.uint32), a >> 16 | a << 16)
    same(apply("mov.b64 {{%r20, _}}, {0}; mov.b32 {d}, %r20;", a.astype(np.uint64) << 3, out=np.uint32), a << 3)


def test_generic_addresses() -> None:
    address = np.array([0, 64, 1024, 4096], np.uint64)
    inside = np.ones(4, np.uint32)
    code = "cvta.{0}.u64 %d20, {{0}}; isspacep.{0} %p1, %d20; selp.u32 {{d}}, 1, 0, %p1;"
    for space in ("shared", "local", "global"):
        same(apply(code.format(space), address, out=np.uint32), inside)
        same(
            apply(code.format(space).replace(f"isspacep.{space}", "isspacep.shared"), address, out=np.uint32),
            inside * (space == "shared"),
        )
    back = apply("cvta.shared.u64 %d20, {0}; cvta.to.shared.u64 {d}, %d20;", address, out=np.uint64)
    same(back, address)


# ---- what must be refused --------------------------------------------------------------------------------------------


def test_unknown_instruction_is_named() -> None:
    with pytest.raises(EmulatorError, match=r"ptx line \d+: unknown instruction 'frobnicate\.b32'"):
        apply("frobnicate.b32 {d}, {0};", np.zeros(4, np.uint32), out=np.uint32)


def test_reading_past_the_parameters_is_found() -> None:
    zero = np.zeros(4, np.uint32)
    same(apply("ld.param.u32 {d}, [n];", zero, out=np.uint32), zero + 4)
    with pytest.raises(Finding, match="param-out-of-bounds: parameter offset 24 lies outside the 24 bytes"):
        apply("ld.param.u32 {d}, [n+24];", zero, out=np.uint32)


def test_operand_width_is_checked() -> None:
    with pytest.raises(EmulatorError, match=r"operand '%d5' of 'add\.s32' has 64 bits, expected 32"):
        apply("add.s32 {d}, {0}, %d5;", np.zeros(4, np.uint32), out=np.uint32)


@pytest.mark.parametrize("text", ["garbage", HEADER + ".visible .entry k() { mov.u32 %r1 }", HEADER + ".bogus k;"])
def test_malformed_ptx(text: str) -> None:
    with pytest.raises(EmulatorError, match="ptx line"):
        Module(text)


def test_undeclared_register_is_named() -> None:
    ptx = snippet_ptx("mov.b32 {d}, %nowhere;", [4], 4)
    with pytest.raises(EmulatorError, match="unknown register '%nowhere'"):
        Module(ptx).facts("op")
