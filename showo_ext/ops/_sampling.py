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

MAX_STEP = 2**32 - 1

# ----------------------------------------------------------------------------------------------------------------
# checks


MAX_CONDITIONS = 8


def check_logits(
    logits: Tensor, uncond: Tensor | None, noise: Tensor | None, weights: Tensor | None, guidance: Number
) -> Tensor:
    """The logits of one condition, as the caller sees them: a view. With weights, `logits` has those of several."""
    check_tensor("logits", logits, FLOAT_DTYPES)
    if weights is not None:
        logits = _first_condition(logits, uncond, weights, guidance)
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
    return logits


def _first_condition(logits: Tensor, uncond: Tensor | None, weights: Tensor, guidance: Number) -> Tensor:
    check_tensor("weights", weights, (torch.float32, torch.float64))
    check_same_device("weights", weights.device, "logits", logits)
    if logits.dim() < 2 or not 1 <= logits.shape[0] <= MAX_CONDITIONS:
        raise ValueError(
            f"logits has shape {list(logits.shape)}, expected 1 to {MAX_CONDITIONS} conditions first, then the rest, "
            "where weights are given"
        )
    if uncond is None:
        raise ValueError("uncond is None, expected the logits without a condition, where weights are given")
    if isinstance(guidance, Tensor) or guidance != 0:
        raise ValueError("guidance is given beside weights, expected one of them (guidance g is one weight of 1 + g)")
    conditions = logits.shape[0]
    rows = logits.shape[1] if logits.dim() > 2 else 1
    if weights.shape not in ((conditions,), (rows, conditions)):
        raise ValueError(
            f"weights has shape {list(weights.shape)}, expected [{conditions}], one for each condition, or "
            f"[{rows}, {conditions}], for every row its own"
        )
    return logits[0]


def check_ids(ids: Tensor) -> None:
    check_tensor("ids", ids, (torch.int64,))
    check_shape("ids", ids, "B", "N")


def check_places(name: str, value: Tensor, dtype: torch.dtype, like_name: str, like: Tensor) -> None:
    """One entry of `dtype` for every entry of `like`, on its device."""
    check_tensor(name, value, (dtype,))
    check_same_device(name, value.device, like_name, like)
    check_same_shape(name, value, like_name, like.shape)


# ----------------------------------------------------------------------------------------------------------------
# numbers that may be tensors: a number is checked here and goes on as (number, None); a tensor, whose value stays on
# its device, as (a number that says nothing, tensor)

Number = float | Tensor


def split_number(
    name: str, value: Number, low: float, high: float, expected: str, like_name: str, like: Tensor
) -> tuple[float, Tensor | None]:
    """A float, or a 0-d tensor of float32 or float64, which is taken in float64."""
    if not isinstance(value, Tensor):
        return check_number(name, value, low, high, expected), None
    check_tensor(name, value, (torch.float32, torch.float64))
    check_same_device(name, value.device, like_name, like)
    check_shape(name, value)
    return 1.0, value.detach().double()


def split_guidance(guidance: Number, uncond: Tensor | None, logits: Tensor) -> tuple[float, Tensor | None]:
    number, tensor = split_number("guidance", guidance, 0.0, 1e30, "a number from 0 to 1e30", "logits", logits)
    if number != 0 and uncond is None:
        raise ValueError("uncond is None, expected the logits without the condition, for a guidance that is not 0")
    return number, tensor


def split_weights(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.detach().double()


def split_temperature(temperature: Number, logits: Tensor) -> tuple[float, Tensor | None]:
    expected = "0 (greedy) or a number from 1e-30 to 1e30"
    number, tensor = split_number("temperature", temperature, 0.0, 1e30, expected, "logits", logits)
    if 0 < number < 1e-30:
        raise ValueError(f"temperature is {number}, expected {expected}")
    return number, tensor


def split_noise_temperature(name: str, temperature: Number, ids: Tensor) -> tuple[float, Tensor | None]:
    return split_number(name, temperature, 0.0, 1e30, "a number from 0 (no noise) to 1e30", "ids", ids)


def split_limits(top_k: int | Tensor, top_p: Number, logits: Tensor) -> tuple[int, Tensor | None, float, Tensor | None]:
    expected = "a number above 0 and up to 1"
    return (
        *split_int("top_k", top_k, 0, None, "logits", logits),
        *split_number("top_p", top_p, math.ulp(0.0), 1.0, expected, "logits", logits),
    )


def split_int(
    name: str, value: int | Tensor, low: int, high: int | None, like_name: str, like: Tensor
) -> tuple[int, Tensor | None]:
    """An int, or a 0-d int64 tensor."""
    if not isinstance(value, Tensor):
        return check_int(name, value, low, high), None
    check_tensor(name, value, (torch.int64,))
    check_same_device(name, value.device, like_name, like)
    check_shape(name, value)
    return 0, value


def split_seed(seed: int | Tensor, rows: int, like_name: str, like: Tensor) -> tuple[int, Tensor | None]:
    """The key of Philox: an int taken modulo 2^64, or a tensor as `split_rows` has it."""
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
    return split_int("step", step, 0, MAX_STEP, like_name, like)


# ----------------------------------------------------------------------------------------------------------------
# for the implementations


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


# What sample_tokens and resample have in common at the end of their schemas, as `sample_arguments` takes it.
SAMPLING_SCHEMA = (
    "float guidance, Tensor? guidance_tensor, Tensor? weights, float temperature, Tensor? temperature_tensor, "
    "SymInt top_k, Tensor? top_k_tensor, float top_p, Tensor? top_p_tensor"
)


def sample_arguments(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    guidance_tensor: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    top_k: int,
    top_k_tensor: Tensor | None,
    top_p: float,
    top_p_tensor: Tensor | None,
) -> dict[str, Argument]:
    """The native arguments that say how to sample from logits `[B, N, V]`; with weights `[K, B, N, V]`."""
    batch, length, vocab = cond.shape[-3:]
    return {
        "cond": cond,
        "uncond": uncond,
        "dtype": cond.dtype,
        "batch": batch,
        "length": length,
        "vocab": vocab,
        "cond_stride_b": cond.stride(-3),
        "cond_stride_n": cond.stride(-2),
        "uncond_stride_b": 0 if uncond is None else uncond.stride(0),
        "uncond_stride_n": 0 if uncond is None else uncond.stride(1),
        "guidance": guidance,
        "guidance_data": guidance_tensor,
        "weights": contiguous(weights),
        "weights_stride_b": 0 if weights is None or weights.dim() == 1 else cond.shape[0],
        "conditions": 0 if weights is None else cond.shape[0],
        "cond_stride_k": 0 if weights is None else cond.stride(0),
        "temperature": temperature,
        "temperature_data": temperature_tensor,
        "top_k": top_k,
        "top_k_data": top_k_tensor,
        "top_p": top_p,
        "top_p_data": top_p_tensor,
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
