"""Int8 weights: half the memory of bf16, and half the time of a token where that is the time of reading the weights.

A row of weights becomes integers from -127 to 127 and one scale, its largest magnitude / 127. Activations and sums keep
their dtype. Only the linear layers of the blocks and the head are quantised; tables, norms and biases stay.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showo.errors import UserError
from showo.model.linear import SKINNY_ROWS, Linear
from showo_ext import skinny_linear

if TYPE_CHECKING:
    from typing_extensions import Self

    from showo.model.transformer import Showo

QUANTIZATIONS = ("int8",)


class Int8Linear(nn.Module):
    """A linear layer whose weights are scale[o] * weight[o]: int8 [out, in] and fp32 [out].

    Many rows at once, as in reading a prompt or drawing a picture, are multiplied by weights that were brought back to
    floats for that one call.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        # A row of zeros has any scale; a tiny one keeps the quotient finite.
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().clone())

    def forward(self, x: Tensor, outputs: slice | None = None) -> Tensor:
        """outputs: those that are wanted; None is all."""
        weight, scale, bias = self.weight, self.scale, self.bias
        if outputs is not None:
            weight, scale, bias = weight[outputs], scale[outputs], bias[outputs]
        if x.shape[:-1].numel() <= SKINNY_ROWS and not torch.is_grad_enabled():
            return skinny_linear(x, weight, bias, scale=scale)
        return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and converts as every module does, but for the scale, which stays fp32."""
        scale = self.scale
        super()._apply(function, recurse)
        self.scale = scale.to(self.weight.device)
        return self

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise UserError("int8 weights are not saved: save the model that they were made from, and quantize it again")


def check_quantization(quantization: str, device: torch.device) -> None:
    """UserError for another kind of quantization, and, on a GPU, without torchao."""
    if quantization not in QUANTIZATIONS:
        raise UserError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    if device.type != "cpu" and importlib.util.find_spec("torchao") is None:
        raise UserError("int8 weights on a GPU need torchao: pip install torchao")


def quantize(model: Showo, quantization: str) -> None:
    """Gives a model int8 weights, in place and layer by layer; for inference only.

    On the CPU they are `Int8Linear`; on a GPU they are those of torchao (Int8WeightOnlyConfig), and the head stays as
    it is. Raises UserError as `check_quantization` does.
    """
    check_quantization(quantization, model.device)
    if model.device.type != "cpu":
        _quantize_with_torchao(model)
        return
    for parent in list(model.showo.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, Int8Linear(child))


def _quantize_with_torchao(model: Showo) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.showo.model, Int8WeightOnlyConfig(), lambda module, name: isinstance(module, Linear))
