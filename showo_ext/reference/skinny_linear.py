"""A linear layer whose weights may be int8 with a scale for each row, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
    """[..., out] from x [..., in], weight [out, in] and bias [out]: x @ weight^T + bias.

    With scale, fp32 [out], the weights are int8 and stand for scale[o] * weight[o]. As many rows as one likes, and
    differentiable.
    """
    if scale is not None:
        weight = (weight * scale[:, None].to(x.dtype)).to(x.dtype)
    return F.linear(x, weight, bias)
