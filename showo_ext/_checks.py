"""The checks of arguments: each operator's public function makes them once, in Python, before anything is launched.

Every message has one grammar, "<argument> has (or is) <what was found>, expected <what is needed>". A wrong type or
dtype is a TypeError; a value, shape, stride or device that does not fit is a ValueError.

An int is any integer (also a NumPy one, or a symbolic one under torch.compile), a number is any real one (also a NumPy
one); a bool is neither.
"""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (32, 64, 96, 128)  # head sizes that the kernels of omni_attention and rope_qkv have
INT64_END = 2**63  # one past the largest int64
LARGEST = sys.float_info.max

# ---------------------------------------------------------------- tensors


def short_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def check_type(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} has type {type(value).__name__}, expected {expected}")


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype]) -> None:
    """A dense tensor of one of the dtypes."""
    check_type(name, value, Tensor, "a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}, expected a dense tensor")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {short_name(value.dtype)}, expected {' or '.join(map(short_name, dtypes))}")


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        expected = f"{short_name(other.dtype)}, the dtype of {other_name}"
        raise TypeError(f"{name} has dtype {short_name(tensor.dtype)}, expected {expected}")


def check_same_device(name: str, device: torch.device, other_name: str, other: Tensor) -> None:
    if device != other.device:
        raise ValueError(f"{name} is on {device}, expected {other.device}, the device of {other_name}")


def check_same_shape(name: str, tensor: Tensor, other_name: str, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}, the shape of {other_name}")


def check_shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """`sizes`: a number for a dimension of that size, a word for a dimension of any size."""
    shape = tensor.shape
    fits = len(shape) == len(sizes)
    for size, expected in zip(shape, sizes):
        if size != expected and not isinstance(expected, str):
            fits = False
    if not fits:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{', '.join(str(size) for size in sizes)}]")


def check_contiguous_rows(name: str, tensor: Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel() > 0:
        raise ValueError(
            f"{name} has strides {list(tensor.stride())}, expected a contiguous last dimension; call .contiguous()"
        )


def in_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device. Meta has no autocast, and torch raises where one asks for it."""
    kind = tensor.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


# ---------------------------------------------------------------- numbers


def check_int(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int, if low <= value <= high and if it fits int64; without low any value is fine."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected an int")
    number = cast(int, value) if isinstance(value, (int, torch.SymInt)) else int(value)
    if low is not None:
        # A symbolic int fits int64, and comparing it with a bound would make that a condition of the compiled graph.
        if high is None and not torch.compiler.is_compiling():
            high = INT64_END - 1
        if number < low or (high is not None and number > high):
            raise ValueError(f"{name} is {number}, expected an int {_range(low, high)}")
    return number


def _range(low: int, high: int | None) -> str:
    return f"of at least {low}" if high is None or high == INT64_END - 1 else f"from {low} to {high}"


def check_number(
    name: str, value: Any, low: float = -LARGEST, high: float = LARGEST, expected: str = "a finite number"
) -> float:
    """`value` as a float, if low <= value <= high, which NaN and infinity fail; `expected` says so in words."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, numbers.Real)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float, positive or negative: no bound allows it
        number = math.inf
    if torch.compiler.is_compiling():
        # A symbolic float would become a constant inside the compiled operator, without a condition that other values
        # compile anew: they would find the first value. Here it becomes one with that condition: the keys of groupby
        # do in every torch, what is there for it, `guard_scalar`, torch.compile does not know in torch 2.6.
        number, _ = next(itertools.groupby([number], key=lambda number: number))
    if not low <= number <= high:
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number
