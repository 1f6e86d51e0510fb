"""The approximate functions against what PTX promises of them: special results, and errors that use up their bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.ptx import compile as cuda
from tests.ptx.device import Out
from tests.ptx.snippets import apply

Function = Callable[..., np.ndarray]
SINGLES = {
    "ex2": (np.exp2, (-126, 127.9)),
    "lg2": (np.log2, (1e-3, 4)),
    "rcp": (np.reciprocal, (-9, 9)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (1e-3, 9)),
    "sqrt": (np.sqrt, (1e-3, 9)),
    "sin": (np.sin, (-6.28, 6.28)),
    "cos": (np.cos, (-6.28, 6.28)),
    "tanh": (np.tanh, (-4, 4)),
}


def units(exact: np.ndarray) -> np.ndarray:
    return np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


# The bound of an error, from the operand and the exact result. PTX ISA 9.0, sections 9.7.3.8 to 9.7.3.22.
BOUNDS: dict[str, Function] = {
    "ex2": lambda x, y: 2 * units(y),
    "lg2": lambda x, y: 2.0**-22 * np.where((x > 0.5) & (x < 2), 1, np.abs(y)),
    "rcp": lambda x, y: units(y),
    "rsqrt": lambda x, y: 2.0**-22.9 * y,
    "sqrt": lambda x, y: 2.0**-23 * y,
    "sin": lambda x, y: np.full_like(y, 2.0**-20.5),
    "cos": lambda x, y: np.full_like(y, 2.0**-20.5),
    "tanh": lambda x, y: 2.0**-11 * np.abs(y),
}


def check_error(got: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> None:
    """Errs within the bound, uses up both sides of it, and not always."""
    share = (got.astype(np.float64) - exact) / bound
    assert np.abs(share).max() <= 1
    assert share.max() > 0.9
    assert share.min() < -0.9
    assert np.median(np.abs(share)) < 0.7


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("name", SINGLES)
def test_fp32(name: str, ftz: str, rng: np.random.Generator) -> None:
    function, ends = SINGLES[name]
    x = rng.uniform(*ends, 4000).astype(np.float32)
    exact = function(x.astype(np.float64))
    code = f"{name}.approx{ftz}.f32 {{d}}, {{0}};"
    got = apply(code, x, out=np.float32)
    check_error(got, exact, BOUNDS[name](x, exact))
    np.testing.assert_array_equal(apply(code, x[::-1].copy(), out=np.float32)[::-1], got)  # the operand decides


def test_far_angles(rng: np.random.Generator) -> None:
    x = (rng.uniform(6.3, 314, 4000) * rng.choice([-1, 1], 4000)).astype(np.float32)
    for name, function in {"sin": np.sin, "cos": np.cos}.items():
        exact = function(x.astype(np.float64))
        check_error(
            apply(f"{name}.approx.f32 {{d}}, {{0}};", x, out=np.float32), exact, np.full_like(exact, 2.0**-14.7)
        )


def test_logarithms_near_zero(rng: np.random.Generator) -> None:
    """The bound is absolute between 1/2 and 2: near 1 the error may be much larger than the logarithm."""
    x = rng.uniform(1 - 1e-5, 1 + 1e-5, 4000).astype(np.float32)
    exact = np.log2(x.astype(np.float64))
    got = apply("lg2.approx.f32 {d}, {0};", x, out=np.float32)
    check_error(got, exact, np.full_like(exact, 2.0**-22))


@pytest.mark.parametrize("name", ["div.approx", "div.full"])
def test_division(name: str, rng: np.random.Generator) -> None:
    a, b = ((rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 9, 4000)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) / b
    check_error(apply(f"{name}.f32 {{d}}, {{0}}, {{1}};", a, b, out=np.float32), exact, 2 * units(exact))


def test_division_by_large_numbers() -> None:
    a = np.array([3e38, -3e38, 3e38, np.inf, 1], np.float32)
    b = np.array([1e38, 1e38, -1e38, 1e38, np.inf], np.float32)
    got = apply("div.approx.f32 {d}, {0}, {1};", a, b, out=np.float32)
    np.testing.assert_array_equal(got, np.array([0, 0, 0, np.nan, 0], np.float32))
    np.testing.assert_array_equal(np.signbit(got[:3]), [False, True, True])


SPECIAL = np.array([-np.inf, -1.0, -0.0, 0.0, np.inf, np.nan], np.float32)
ANY = -7.0  # where PTX promises no more than the bound
RESULTS = {
    "ex2": [0, ANY, 1, 1, np.inf, np.nan],
    "lg2": [np.nan, np.nan, -np.inf, -np.inf, np.inf, np.nan],
    "rcp": [-0.0, ANY, -np.inf, np.inf, 0, np.nan],
    "rsqrt": [np.nan, np.nan, -np.inf, np.inf, 0, np.nan],
    "sqrt": [np.nan, np.nan, -0.0, 0.0, np.inf, np.nan],
    "sin": [np.nan, ANY, -0.0, 0.0, np.nan, np.nan],
    "cos": [np.nan, ANY, 1, 1, np.nan, np.nan],
    "tanh": [-1, ANY, -0.0, 0.0, 1, np.nan],
}


@pytest.mark.parametrize("name", RESULTS)
def test_special_results(name: str) -> None:
    expected = np.array(RESULTS[name], np.float32)
    promised = expected != ANY
    got = apply(f"{name}.approx.f32 {{d}}, {{0}};", SPECIAL, out=np.float32)
    np.testing.assert_array_equal(got[promised], expected[promised])
    numbers = promised & ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


def test_ends_of_the_range() -> None:
    x = np.array([-200, 200, 128, -149], np.float32)
    expected = np.array([0, np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(apply("ex2.approx.f32 {d}, {0};", x, out=np.float32)[:3], expected)
    flushed = apply("ex2.approx.ftz.f32 {d}, {0};", x, out=np.float32)
    np.testing.assert_array_equal(flushed, np.append(expected, np.float32(0)))
    tiny = np.array([1e-40, -1e-40], np.float32)
    np.testing.assert_array_equal(apply("tanh.approx.f32 {d}, {0};", tiny, out=np.float32), tiny)  # passes through
    got = apply("rcp.approx.ftz.f32 {d}, {0};", tiny, out=np.float32)
    np.testing.assert_array_equal(got, np.array([np.inf, -np.inf], np.float32))
    largest = np.nextafter(np.float32(128), np.float32(0), dtype=np.float32)[None]
    assert np.isfinite(apply("ex2.approx.f32 {d}, {0};", largest, out=np.float32)).all()


HALVES: dict[str, tuple[Function, tuple[float, float], Function, Function]] = {  # PTX ISA 9.0, 9.7.4.9 and 9.7.4.10
    "ex2": (np.exp2, (-12, 12), lambda y: 2.0**-9.9 * y, lambda y: 2.0**-7 * y),
    "tanh": (np.tanh, (-4, 4), lambda y: np.full_like(y, 2.0**-10.987), lambda y: np.full_like(y, 2.0**-8)),
}


@pytest.mark.parametrize("name", HALVES)
def test_halves(name: str, rng: np.random.Generator) -> None:
    function, ends, f16_bound, bf16_bound = HALVES[name]
    x = rng.uniform(*ends, 4000).astype(np.float32)
    halves = x.astype(np.float16)
    exact = function(halves.astype(np.float64))
    got = apply(f"{name}.approx.f16 {{d}}, {{0}};", halves.view(np.uint16), out=np.uint16).view(np.float16)
    check_error(got, exact, f16_bound(exact))
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    exact = function((bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64))
    code = f"{name}.approx{'.ftz' if name == 'ex2' else ''}.bf16 {{d}}, {{0}};"
    got = (apply(code, bits, out=np.uint16).astype(np.uint32) << 16).view(np.float32)
    check_error(got, exact, bf16_bound(exact))


@pytest.mark.parametrize(("name", "function"), [("rcp", np.reciprocal), ("rsqrt", lambda x: 1 / np.sqrt(x))])
def test_upper_words_of_fp64(name: str, function: Function, rng: np.random.Generator) -> None:
    """The lower word of the operand is not read, that of the result is 0, and the upper one is off by one at most."""
    x = rng.uniform(0.1, 9, 4000)
    code = f"{name}.approx.ftz.f64 {{d}}, {{0}};"
    got = apply(code, x, out=np.float64)
    assert not (got.view(np.uint64) & 0xFFFFFFFF).any()
    upper = (x.view(np.uint64) >> np.uint64(32) << np.uint64(32)).view(np.float64)
    exact = function(upper)
    check_error(got, exact, 2.0 ** (np.frexp(exact)[1] - 21))
    np.testing.assert_array_equal(apply(code, upper, out=np.float64), got)
    special = np.array([0.0, -0.0, 1e-310, np.inf, np.nan])
    expected = np.array([np.inf, -np.inf, np.inf, 0.0, np.nan])
    np.testing.assert_array_equal(apply(code, special, out=np.float64), expected)


def test_tanh_of_a_softcap(compiled, rng) -> None:
    """What csrc/omni_attention/softcap.cuh says of its two, with every approximation as far off as PTX allows."""
    folder = cuda.ROOT / "csrc"
    text = b"".join((folder / name).read_bytes() for name in ("omni_attention/softcap.cuh", "common/ptx.cuh"))
    module = compiled("softcap.cu", f"-I{folder}", f"-DTEXT_{hashlib.sha256(text).hexdigest()[:16]}")
    x = np.concatenate([np.logspace(-38, 5, 30000), rng.uniform(0, 10, 30000), [0.0, np.inf]]).astype(np.float32)
    x = np.concatenate([x, -x, [np.nan]]).astype(np.float32)
    coarse, exact = np.zeros_like(x), np.zeros_like(x)
    counters = module.launch(
        "tanh_of", grid=(len(x) + 127) // 128, block=128, args=[Out(coarse), Out(exact), x, len(x)]
    )
    assert counters.warps("special") == 4 * ((len(x) + 31) // 32)
    expected = np.tanh(x[:-1].astype(np.float64))
    assert np.abs(coarse[:-1] - expected).max() <= 2.0**-21
    assert (np.abs(exact[:-1] - expected) <= 2.0**-21 * np.abs(expected)).all()
    assert np.isnan([coarse[-1], exact[-1]]).all()
