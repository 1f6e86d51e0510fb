"""skinny_linear: a linear layer for a few rows of x, as in decoding text; on the CPU it takes as long as reading the
weights once does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from showo_ext._checks import (
    FLOAT_DTYPES,
    check_contiguous_rows,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    in_autocast,
)
from showo_ext._native import launch, runs_on_cuda
from showo_ext._operator import Operator

MAX_ROWS = 16  # with more rows the products take longer than the reading, and torch's are faster

# ---------------------------------------------------------------- public function


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
    """y = x @ weight^T + bias for at most 16 rows of x; int8 weights have a scale for each of their rows.

    On the CPU sums are formed in fp32 and rounded once, and the weights are read once, as they lie. On a CUDA device
    there is no kernel of our own: floating weights go to torch.nn.functional.linear, and int8 weights are multiplied by
    their scales into a matrix of x's dtype first, which takes longer than weights of that dtype would. Under autocast
    the floating arguments but scale are taken in its dtype, like torch.nn.functional.linear does.

    Args:
        x: [..., in], fp32, fp16 or bf16, at most 16 vectors, any strides.
        weight: [out, in], in x's dtype, or int8; contiguous last dimension, any stride between rows.
        bias: [out] in x's dtype.
        scale: fp32 [out], with int8 weights and only with them: row o of the weights is scale[o] * weight[o].

    Returns:
        [..., out], contiguous, in x's dtype.

    Raises:
        TypeError, ValueError: arguments that do not fit, by name.
        RuntimeError: an argument requires grad while grad mode is on; there is no backward.
    """
    check_tensor("x", x, FLOAT_DTYPES)
    check_tensor("weight", weight, (*FLOAT_DTYPES, torch.int8))
    check_shape("weight", weight, "out", "in")
    check_contiguous_rows("weight", weight)
    check_same_device("weight", weight.device, "x", x)
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {list(x.shape)}, expected [..., {weight.shape[1]}], the width of weight")
    if x.shape[:-1].numel() > MAX_ROWS:
        raise ValueError(f"x has shape {list(x.shape)}, expected at most {MAX_ROWS} vectors")
    _check_scale(scale, weight)
    if bias is not None:
        check_tensor("bias", bias, FLOAT_DTYPES)
        check_shape("bias", bias, weight.shape[0])
        check_same_device("bias", bias.device, "x", x)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, scale)):
        raise RuntimeError(
            "skinny_linear has no gradient: use torch.nn.functional.linear, or call it under torch.no_grad()"
        )
    if in_autocast(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        weight = weight if scale is not None else weight.to(dtype)
    if scale is None:
        check_same_dtype("weight", weight, "x", x)
    if bias is not None:
        check_same_dtype("bias", bias, "x", x)
    return _LINEAR(x, weight, bias, scale)


def _check_scale(scale: Tensor | None, weight: Tensor) -> None:
    if (scale is None) != (weight.dtype != torch.int8):
        found, expected = ("None", "a tensor") if scale is None else ("a tensor", "None")
        raise ValueError(f"scale is {found}, expected {expected}, since weight has dtype {weight.dtype}")
    if scale is not None:
        check_tensor("scale", scale, (torch.float32,))
        check_shape("scale", scale, weight.shape[0])
        check_same_device("scale", scale.device, "weight", weight)


# ---------------------------------------------------------------- implementation


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    if runs_on_cuda(x):
        return F.linear(x, weight if scale is None else (weight * scale[:, None]).to(x.dtype), bias)
    y = _fake(x, weight, bias, scale)
    out_features, in_features = weight.shape
    rows = x.reshape(x.shape[:-1].numel(), in_features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    launch(
        "skinny_linear",
        x,
        x=rows,
        weight=weight if scale is None else None,
        weight_int8=None if scale is None else weight,
        scale=None if scale is None else scale.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        y=y,
        workspace=torch.empty(rows.shape, dtype=torch.float32),
        dtype=x.dtype,
        rows=rows.shape[0],
        in_features=in_features,
        out_features=out_features,
        x_stride=rows.stride(0),
        weight_stride=weight.stride(0),
    )
    return y


# ---------------------------------------------------------------- fake: allocates, for real tensors too


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)


# ---------------------------------------------------------------- registration

_LINEAR = Operator("skinny_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale) -> Tensor", _linear, _fake)
