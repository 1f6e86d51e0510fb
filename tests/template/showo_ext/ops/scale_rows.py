"""scale_rows: every row of a matrix times a number of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import FLOAT_DTYPES, check_same_device, check_same_dtype, check_shape, check_tensor
from showo_ext._native import Argument, launch
from showo_ext._operator import Operator

# ---------------------------------------------------------------- public function


def scale_rows(x: Tensor, scale: Tensor) -> Tensor:
    """y[r, c] = x[r, c] * scale[r], with gradients for both.

    Products, and the sums in the gradient of scale, are formed in fp32 and rounded once.

    Args:
        x: [R, C], fp32, fp16 or bf16, any strides.
        scale: [R], same dtype and device.

    Returns:
        [R, C], contiguous, in x's dtype.

    Raises:
        NotImplementedError: no kernel for this device in this build, or a second derivative is asked for.
    """
    check_tensor("x", x, FLOAT_DTYPES)
    check_shape("x", x, "R", "C")
    check_tensor("scale", scale, FLOAT_DTYPES)
    check_shape("scale", scale, x.shape[0])
    check_same_dtype("scale", scale, "x", x)
    check_same_device("scale", scale.device, "x", x)
    return _FORWARD(x, scale)


# ---------------------------------------------------------------- implementations


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _inputs(x: Tensor, scale: Tensor) -> dict[str, Argument]:
    """The arguments that both launchers have; the fields of csrc/bindings/bind_scale_rows.cpp."""
    rows, columns = x.shape
    x, scale = _contiguous_rows(x), scale.contiguous()
    return {"x": x, "scale": scale, "dtype": x.dtype, "rows": rows, "columns": columns, "x_stride": x.stride(0)}


def _forward(x: Tensor, scale: Tensor) -> Tensor:
    y = _forward_fake(x, scale)
    launch("scale_rows_forward", x, **_inputs(x, scale), y=y)
    return y


def _backward(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    dx, dscale = _backward_fake(dy, x, scale)
    dy = _contiguous_rows(dy)
    launch("scale_rows_backward", x, **_inputs(x, scale), dy=dy, dy_stride=dy.stride(0), dx=dx, dscale=dscale)
    return dx, dscale


# ---------------------------------------------------------------- fake: allocates, for real tensors too


def _forward_fake(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _backward_fake(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _forward_fake(x, scale), torch.empty(scale.shape, dtype=scale.dtype, device=scale.device)


# ---------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return _BACKWARD(dy, *ctx.saved_tensors)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "scale_rows has no second derivative; showo_ext.reference.scale_rows can be differentiated twice"
    )


# ---------------------------------------------------------------- registration

_FORWARD = Operator(
    "scale_rows_forward(Tensor x, Tensor scale) -> Tensor",
    _forward,
    _forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_BACKWARD = Operator(
    "scale_rows_backward(Tensor dy, Tensor x, Tensor scale) -> (Tensor dx, Tensor dscale)",
    _backward,
    _backward_fake,
    backward=_no_second_derivative,
)
