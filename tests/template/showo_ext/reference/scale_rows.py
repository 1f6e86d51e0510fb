"""Rows times numbers, in plain torch."""

from torch import Tensor


def scale_rows(x: Tensor, scale: Tensor) -> Tensor:
    """[R, C] from x [R, C] and scale [R]: y[r, c] = x[r, c] * scale[r]."""
    return x * scale[:, None]
