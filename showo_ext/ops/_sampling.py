"""What the four sampling operators check and pass on alike: tensors, seeds, steps, noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from showo_ext._checks import (
    FLOAT_DTYPES,
    INT64_END,
    check_contiguous_rows,
    check_int,
    check_number,
    check_same_device,
    check_same_shape,
    check_shape,
    check_tensor,
)
from showo_ext._native import Argument

MAX_ROWS = 2**24  # room for the batch row in a Philox counter
MAX_STEP = 2**32 - 1

# ----------------------------------------------------------------------------------------------------------------
# checks


def check_logits(logits: Tensor, uncond: Tensor | None, noise: Tensor | None) -> None:
    check_tensor("logits", logits, FLOAT_DTYPES)
    if logits.dim() == 0:
        raise ValueError("logits has shape [], expected at least one dimension, the vocabulary")
    if logits.shape[-1] == 0 and logits.shape[:-1].numel() > 0:
        raise ValueError(f"logits has shape {list(logits.shape)}, expected at least one entry per row")
    check_contiguous_rows("logits", logits)
    if uncond is not None:
        check_places("uncond", uncond, logits.dtype, "logits", logits)
        check_contiguous_rows("uncond", uncond)
    if noise is not None:
        check_places("noise", noise, torch.float32, "logits", logits)


def check_ids(ids: Tensor) -> None:
    check_tensor("ids", ids, (torch.int64,))
    check_shape("ids", ids, "B", "N")


def check_places(name: str, value: Tensor, dtype: torch.dtype, like_name: str, like: Tensor) -> None:
    """One entry of `dtype` for every entry of `like`, on its device."""
    check_tensor(name, value, (dtype,))
    check_same_device(name, value.device, like_name, like)
    check_same_shape(name, value, like_name, like.shape)


def check_guidance(guidance: float, uncond: Tensor | None) -> float:
    guidance = check_number("guidance", guidance, 0.0, 1e30, "a number from 0 to 1e30")
    if guidance != 0 and uncond is None:
        raise ValueError(f"uncond is None, expected the logits without the condition for guidance {guidance}")
    return guidance


def check_sampling_temperature(temperature: float) -> float:
    number = check_number("temperature", temperature)
    if not (number == 0 or 1e-30 <= number <= 1e30):
        raise ValueError(f"temperature is {number}, expected 0 (greedy) or a number from 1e-30 to 1e30")
    return number


def check_noise_temperature(name: str, temperature: float) -> float:
    return check_number(name, temperature, 0.0, 1e30, "a number from 0 (no noise) to 1e30")


def check_top_p(top_p: float) -> float:
    return check_number("top_p", top_p, math.ulp(0.0), 1.0, "a number above 0 and up to 1")


def split_seed(seed: int | Tensor, rows: int, like_name: str, like: Tensor) -> tuple[int, Tensor | None]:
    """The key of Philox: an int taken modulo 2^64, or a tensor as `split_rows` has it."""
    if rows > MAX_ROWS:
        raise ValueError(f"{like_name} has {rows} rows, expected at most 2^24")
    value, tensor = split_rows("seed", seed, rows, like_name, like)
    if not -INT64_END <= value < INT64_END:
        value = (value + INT64_END) % (2 * INT64_END) - INT64_END  # the same 64 bits, as the schema's signed integer
    return value, tensor


def split_mask_len(mask_len: int | Tensor, ids: Tensor) -> tuple[int, Tensor | None]:
    return split_rows("mask_len", mask_len, ids.shape[0], "ids", ids, low=0)


def split_rows(
    name: str, value: int | Tensor, rows: int, like_name: str, like: Tensor, *, low: int | None = None
) -> tuple[int, Tensor | None]:
    """An int, or an int64 tensor (0-d for all rows, else one entry per row), as (int, None) or (0, tensor)."""
    if not isinstance(value, Tensor):
        return check_int(name, value, low), None
    check_tensor(name, value, (torch.int64,))
    check_same_device(name, value.device, like_name, like)
    if value.dim() > 0:
        check_shape(name, value, rows)
    return 0, value


def split_step(step: int | Tensor, like_name: str, like: Tensor) -> tuple[int, Tensor | None]:
    if not isinstance(step, Tensor):
        return check_int("step", step, 0, MAX_STEP), None
    check_tensor("step", step, (torch.int64,))
    check_same_device("step", step.device, like_name, like)
    check_shape("step", step)
    return 0, step


# ----------------------------------------------------------------------------------------------------------------
# for the implementations


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def sample_arguments(
    cond: Tensor, uncond: Tensor | None, guidance: float, temperature: float, top_k: int, top_p: float
) -> dict[str, Argument]:
    """The native arguments that say how to sample from logits `[B, N, V]`."""
    batch, length, vocab = cond.shape
    return {
        "cond": cond,
        "uncond": uncond,
        "dtype": cond.dtype,
        "batch": batch,
        "length": length,
        "vocab": vocab,
        "cond_stride_b": cond.stride(0),
        "cond_stride_n": cond.stride(1),
        "uncond_stride_b": 0 if uncond is None else uncond.stride(0),
        "uncond_stride_n": 0 if uncond is None else uncond.stride(1),
        "cond_scale": 1 + guidance if uncond is not None else 1.0,
        "uncond_scale": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }


def noise_arguments(
    noise: Tensor | None, seed: int, seeds: Tensor | None, step: int, step_tensor: Tensor | None
) -> dict[str, Argument]:
    """The native arguments of one noise source."""
    return {
        "noise": contiguous(noise),
        "seed": seed,
        "seed_data": contiguous(seeds),
        "seed_stride": row_stride(seeds),
        "step": step,
        "step_data": step_tensor,
    }


def row_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.dim() == 0 else 1
