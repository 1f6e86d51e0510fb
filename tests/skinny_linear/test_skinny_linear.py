"""skinny_linear: values for every dtype of weights wherever it runs, edges, and what torch asks of an operator."""

import pytest
import torch

from showo_ext import reference, skinny_linear
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    assert_within_budget,
    available_isas,
    guarded,
    inside_larger,
    poisoned,
    randint,
    randn,
    use_isa,
    use_threads,
)

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
weights = pytest.mark.parametrize("int8", [False, True], ids=["float weights", "int8 weights"])


def problem(rows, width, outputs, dtype=torch.float32, int8=False, device="cpu"):
    """x, weight, bias, scale (or None)."""
    x = randn(rows, width, dtype=dtype, seed=1, device=device)
    bias = randn(outputs, dtype=dtype, seed=2, device=device)
    if not int8:
        return x, randn(outputs, width, dtype=dtype, seed=3, device=device), bias, None
    weight = randint(-128, 128, (outputs, width), seed=3, device=device).to(torch.int8)
    return x, weight, bias, randn(outputs, seed=4, device=device).abs() / 100


def check(x, weight, bias, scale):
    actual = skinny_linear(x, weight, bias, scale=scale)
    double = [t if t is None or t.dtype == torch.int8 else t.double() for t in (x, weight, bias, scale)]
    oracle = reference.skinny_linear(*double[:3], scale=double[3])
    same_dtype = reference.skinny_linear(x, weight, bias, scale=scale)
    assert actual.dtype == x.dtype
    assert actual.is_contiguous()
    assert_within_budget(actual, oracle, same_dtype, rms=True)


# Widths and outputs around the lanes, the words and the tiles of every instruction set; some outputs are more than a
# task has.
SIZES = [(1, 1, 1), (1, 200, 300), (2, 31, 5), (3, 128, 130), (4, 65, 7), (5, 64, 99), (15, 257, 66), (16, 2051, 301)]


@dtypes
@weights
@pytest.mark.parametrize(("rows", "width", "outputs"), SIZES)
def test_values(any_device, dtype, int8, rows, width, outputs):
    check(*problem(rows, width, outputs, dtype, int8, any_device))


@dtypes
@weights
@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set(dtype, int8, isa):
    with use_isa(isa):
        for rows in (1, 2, 3, 7):
            check(*problem(rows, 201, 133, dtype, int8))


def test_int8_weights_of_every_value(any_device):
    values = torch.arange(-128, 128).to(torch.int8).to(any_device)
    weight = torch.stack((values, values.flip(0)))
    x = torch.eye(256, device=any_device)[37:53]  # one place each, in every position of a word
    y = skinny_linear(x, weight, scale=torch.ones(2, device=any_device))
    assert y.tolist() == weight[:, 37:53].t().tolist()


@dtypes
@pytest.mark.parametrize("place", [0, 131, 132], ids=["first vector", "last but one", "last"])
def test_special_values_of_weights_reach_their_output_alone(any_device, dtype, place):
    x, weight, bias, _ = problem(3, 133, 40, dtype, device=any_device)
    expected = skinny_linear(x, weight, bias)
    for value in (float("nan"), float("inf"), -float("inf")):
        poison = weight.clone()
        poison[7, place] = value
        expected[:, 7] = x[:, place] * value
        torch.testing.assert_close(skinny_linear(x, poison, bias), expected, rtol=0, atol=0, equal_nan=True)


@weights
def test_no_bias(any_device, int8):
    x, weight, _, scale = problem(2, 70, 9, int8=int8, device=any_device)
    zeros = torch.zeros(9, device=any_device)
    assert torch.equal(skinny_linear(x, weight, scale=scale), skinny_linear(x, weight, zeros, scale=scale))


@weights
def test_leading_dimensions(any_device, int8):
    x, weight, bias, scale = problem(12, 70, 9, int8=int8, device=any_device)
    expected = skinny_linear(x, weight, bias, scale=scale)
    for shape in ((3, 4), (2, 1, 6)):
        y = skinny_linear(x.view(*shape, 70), weight, bias, scale=scale)
        assert torch.equal(y, expected.view(*shape, 9))
    assert torch.equal(
        skinny_linear(x[5], weight, bias, scale=scale), skinny_linear(x[5:6], weight, bias, scale=scale)[0]
    )


@dtypes
@weights
def test_any_strides(dtype, int8):
    """Poison lies around every tensor, and the rows of the weights begin at any address."""
    tensors = problem(6, 131, 40, dtype, int8)
    expected = skinny_linear(*tensors[:3], scale=tensors[3])
    inside = [None if t is None else inside_larger(t) for t in tensors]
    turned = [tensors[0].t().contiguous().t(), *tensors[1:]]  # x may have any strides
    every_second = [inside_larger(tensors[0], last_dim_contiguous=False), *tensors[1:]]
    for x, weight, bias, scale in (inside, turned, every_second):
        assert torch.equal(skinny_linear(x, weight, bias, scale=scale), expected)


@weights
def test_every_result_is_written_and_nothing_else(monkeypatch, int8):
    """The output and the workspace are poison before, and guarded."""
    x, weight, bias, scale = problem(5, 70, 133, int8=int8)
    expected = skinny_linear(x, weight, bias, scale=scale)
    made = []

    def empty(shape, *, dtype, device="cpu"):
        made.append(guarded(poisoned(shape, dtype=dtype, device=device)))
        return made[-1].tensor

    inputs = [None if t is None else guarded(t) for t in (x, weight, bias, scale)]
    tensors = [None if t is None else t.tensor for t in inputs]
    monkeypatch.setattr(torch, "empty", empty)
    y = skinny_linear(*tensors[:3], scale=tensors[3])
    assert len(made) == 2
    assert torch.equal(y, expected)
    for memory, original in zip([*made, *inputs], [None, None, x, weight, bias, scale], strict=True):
        if memory is not None:
            memory.check()
            assert original is None or torch.equal(memory.tensor, original)


@weights
def test_a_row_does_not_depend_on_threads_or_other_rows(int8):
    x, weight, bias, scale = problem(16, 2000, 1000, int8=int8)
    with use_threads(1):
        expected = skinny_linear(x, weight, bias, scale=scale)
    for count in (2, 5):
        with use_threads(count):
            assert torch.equal(skinny_linear(x, weight, bias, scale=scale), expected)
    for rows in (1, 2, 3, 6):
        assert torch.equal(skinny_linear(x[:rows], weight, bias, scale=scale), expected[:rows])


@weights
@pytest.mark.parametrize(("rows", "width", "outputs"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(any_device, int8, rows, width, outputs):
    x, weight, bias, scale = problem(rows, width, outputs, int8=int8, device=any_device)
    y = skinny_linear(x, weight, bias, scale=scale)
    assert torch.equal(y, reference.skinny_linear(x, weight, bias, scale=scale))


@weights
def test_autocast(int8):
    x, weight, bias, scale = problem(2, 70, 9, int8=int8)
    with torch.autocast("cpu", torch.bfloat16):
        y = skinny_linear(x, weight, bias, scale=scale)
    half = weight if int8 else weight.bfloat16()
    assert torch.equal(y, skinny_linear(x.bfloat16(), half, bias.bfloat16(), scale=scale))


@weights
def test_opcheck_and_compile(int8):
    x, weight, bias, scale = problem(2, 70, 9, int8=int8)
    torch.library.opcheck(torch.ops.showo_ext.skinny_linear.default, (x, weight, bias, scale))
    assert_compiles(lambda *t: skinny_linear(*t[:3], scale=t[3]), x, weight, bias, scale)


def test_gradients_are_refused():
    x, weight, bias, _ = problem(2, 70, 9)
    for t in (x, weight, bias):
        t.requires_grad_()
        with pytest.raises(RuntimeError, match=r"skinny_linear has no gradient: use torch.nn.functional.linear"):
            skinny_linear(x, weight, bias)
        with torch.no_grad():
            assert not skinny_linear(x, weight, bias).requires_grad
        t.requires_grad_(False)


ONES = {"x": torch.ones(2, 3), "weight": torch.ones(4, 3), "bias": torch.ones(4), "scale": None}
INT8 = {"weight": torch.ones(4, 3, dtype=torch.int8), "scale": torch.ones(4)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x has type list, expected a torch.Tensor"),
        ({"x": torch.ones(2, 3).double()}, TypeError, "x has dtype float64, expected float32 or"),
        ({"x": torch.ones(2, 4)}, ValueError, r"x has shape \[2, 4\], expected \[..., 3\], the width of weight"),
        ({"x": torch.ones(())}, ValueError, r"x has shape \[\], expected"),
        ({"x": torch.ones(17, 3)}, ValueError, r"x has shape \[17, 3\], expected at most 16 vectors"),
        ({"weight": torch.ones(4, 3).half()}, TypeError, "weight has dtype float16, expected float32, the dtype of x"),
        ({"weight": torch.ones(4, 3).int()}, TypeError, "weight has dtype int32, expected float32 or"),
        ({"weight": torch.ones(4)}, ValueError, r"weight has shape \[4\], expected \[out, in\]"),
        ({"weight": torch.ones(3, 4).t()}, ValueError, r"weight has strides \[1, 4\], expected a contiguous last"),
        ({"weight": torch.ones(4, 3, device="meta")}, ValueError, "weight is on meta, expected cpu, the device of x"),
        ({"bias": torch.ones(3)}, ValueError, r"bias has shape \[3\], expected \[4\]"),
        ({"bias": torch.ones(4).half()}, TypeError, "bias has dtype float16, expected float32, the dtype of x"),
        (
            {"scale": torch.ones(4)},
            ValueError,
            "scale is a tensor, expected None, since weight has dtype torch.float32",
        ),
        (INT8 | {"scale": None}, ValueError, "scale is None, expected a tensor, since weight has dtype torch.int8"),
        (INT8 | {"scale": torch.ones(3)}, ValueError, r"scale has shape \[3\], expected \[4\]"),
        (INT8 | {"scale": torch.ones(4).half()}, TypeError, "scale has dtype float16, expected float32"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        skinny_linear(**(ONES | arguments))


def example_skinny_linear(package, dtype):
    return [
        package.skinny_linear(*problem(3, 70, 9, dtype)[:3]),
        package.skinny_linear(*problem(3, 70, 9, dtype, int8=True)[:3], scale=problem(3, 70, 9, int8=True)[3]),
    ]
