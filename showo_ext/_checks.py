"""Argument checks shared by the operators. Each names the argument, what it is and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def short_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}, expected a dense tensor")


def require_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        expected = " or ".join(short_name(dtype) for dtype in allowed)
        raise TypeError(f"{name} has dtype {short_name(tensor.dtype)}, expected {expected}")


def require_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name} has dtype {short_name(tensor.dtype)}, but {other_name} has {short_name(other.dtype)}; "
            "expected the same"
        )


def require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device}, but {other_name} is on {other.device}; expected the same device"
        )


def require_rank(name: str, tensor: Tensor, rank: int, meaning: str) -> None:
    if tensor.dim() != rank:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {rank} dimensions {meaning}")


def require_int(name: str, value: Any) -> None:
    # torch.compile hands over symbolic integers, which are no subclass of int
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected an int")
