"""scale_rows: values and gradients wherever it runs, edges, and what torch asks of an operator."""

import pytest
import torch

from showo_ext import reference, scale_rows
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    assert_within_budget,
    available_isas,
    guarded,
    in_random_layout,
    randn,
    use_isa,
    use_threads,
    with_special_values,
)

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def problem(rows, columns, dtype=torch.float32, device="cpu"):
    """x, scale, dy."""
    shapes = ((rows, columns), (rows,), (rows, columns))
    return [randn(*shape, dtype=dtype, seed=rows + i, device=device) for i, shape in enumerate(shapes)]


def results(function, x, scale, dy):
    """y, dx, dscale."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = function(x, scale)
    return [y.detach(), *torch.autograd.grad(y, (x, scale), dy)]


def check(x, scale, dy):
    actual = results(scale_rows, x, scale, dy)
    oracle = results(reference.scale_rows, x.double(), scale.double(), dy.double())
    same_dtype = results(reference.scale_rows, x, scale, dy)
    for what, a, o, s in zip(("y", "dx", "dscale"), actual, oracle, same_dtype, strict=True):
        assert a.dtype == x.dtype
        assert a.is_contiguous()
        assert_within_budget(a, o, s, what=what, rms=what == "dscale")  # few numbers, and torch's sums may be lucky


@dtypes
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 31), (5, 33), (9, 200), (300, 7), (40, 1000)])
def test_values_and_gradients(any_device, dtype, rows, columns):
    check(*problem(rows, columns, dtype, any_device))


@dtypes
@pytest.mark.parametrize("isa", available_isas())
def test_every_instruction_set(dtype, isa):
    with use_isa(isa):
        check(*problem(37, 45, dtype))


@dtypes
def test_special_values(any_device, dtype):
    x, scale, _ = problem(30, 40, dtype, any_device)
    x, scale = with_special_values(x), with_special_values(scale)
    y, expected = scale_rows(x, scale), reference.scale_rows(x, scale)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_any_strides(any_device):
    tensors = problem(6, 40, device=any_device)
    scattered = [in_random_layout(x, seed=3 * i + 1) for i, x in enumerate(tensors)]
    assert scattered[0].stride() != scattered[2].stride()  # or one tensor's strides could pass for another's
    turned = [x.t().contiguous().t() for x in tensors]  # columns are contiguous, not rows
    repeated = [tensors[0][:1].expand(6, 40), tensors[1][:1].expand(6), tensors[2][:1, :1].expand(6, 40)]  # stride 0
    for other in (scattered, turned, repeated):
        expected = results(scale_rows, *(x.contiguous() for x in other))
        assert all(torch.equal(a, e) for a, e in zip(results(scale_rows, *other), expected, strict=True))


def test_inputs_stay_as_they_are(any_device):
    inputs = [guarded(x) for x in problem(6, 40, device=any_device)]
    before = [x.tensor.clone() for x in inputs]
    results(scale_rows, *(x.tensor for x in inputs))
    for x, original in zip(inputs, before, strict=True):
        x.check()
        assert torch.equal(x.tensor, original)


def test_same_result_on_any_number_of_threads():
    tensors = problem(500, 300)
    with use_threads(1):
        expected = results(scale_rows, *tensors)
    for count in (2, 5):
        with use_threads(count):
            assert all(torch.equal(a, e) for a, e in zip(results(scale_rows, *tensors), expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(any_device, shape):
    y, dx, dscale = results(scale_rows, *problem(*shape, device=any_device))
    assert y.shape == dx.shape == shape
    assert dscale.tolist() == [0.0] * shape[0]


def test_opcheck():
    x, scale, dy = problem(5, 7)
    torch.library.opcheck(torch.ops.showo_ext.scale_rows_backward.default, (dy, x, scale))
    inputs = (x.requires_grad_(), scale.requires_grad_())
    torch.library.opcheck(torch.ops.showo_ext.scale_rows_forward.default, inputs)


def test_compiles():
    x, scale, dy = problem(5, 7)
    assert_compiles(scale_rows, x, scale)
    compiled = torch.compile(scale_rows, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(results(compiled, x, scale, dy), results(scale_rows, x, scale, dy), strict=True):
        assert torch.equal(actual, expected)


def test_second_derivative_is_refused():
    x, scale, _ = (t.requires_grad_() for t in problem(5, 7))
    (dx,) = torch.autograd.grad(scale_rows(x, scale).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="scale_rows has no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x has type list, expected a torch.Tensor"),
        ({"x": torch.ones(2)}, ValueError, r"x has shape \[2\], expected \[R, C\]"),
        ({"x": torch.ones(2, 3).long()}, TypeError, "x has dtype int64, expected float32 or"),
        ({"scale": torch.ones(3)}, ValueError, r"scale has shape \[3\], expected \[2\]"),
        ({"scale": torch.ones(2).half()}, TypeError, "scale has dtype float16, expected float32, the dtype of x"),
        ({"scale": torch.ones(2, device="meta")}, ValueError, "scale is on meta, expected cpu, the device of x"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        scale_rows(**({"x": torch.ones(2, 3), "scale": torch.ones(2)} | arguments))


def example_scale_rows(package, dtype):
    return results(package.scale_rows, *problem(5, 7, dtype))
