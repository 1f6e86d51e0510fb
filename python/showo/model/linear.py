"""The linear layers and tables of the transformer."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showo_ext import skinny_linear

SKINNY_ROWS = 16  # most rows of `skinny_linear`


class Linear(nn.Linear):
    """nn.Linear that starts from normal(0, 0.02) and zero bias, as the backbone's training did.

    A few rows on the CPU, as in decoding text, take as long as reading the weights once does.
    """

    std: ClassVar[float] = 0.02

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, outputs: slice | None = None) -> Tensor:
        """outputs: those that are wanted; None is all."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if outputs is not None:
            weight, bias = weight[outputs], bias[outputs]
        if reads_weights_once(x, weight):
            return skinny_linear(x, weight, bias)
        return F.linear(x, weight, bias)


class Embedding(nn.Embedding):
    """nn.Embedding that starts from normal(0, 0.02)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=Linear.std)


def reads_weights_once(x: Tensor, weight: Tensor) -> bool:
    """Whether x @ weight^T is one for `skinny_linear`: few rows, on the CPU, of plain tensors, without a gradient."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x.shape[:-1].numel() <= SKINNY_ROWS
        and x.dtype == weight.dtype != torch.float64
        and type(weight) in (Tensor, nn.Parameter)  # quantised weights of other libraries bring their own products
        and not torch.is_autocast_enabled("cpu")  # which keeps the weights that it has cast
    )
