"""What the four sampling operators check and pass on alike: tensors, seeds, steps, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from showo_ext._native import Argument

LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_ROWS = 2**24  # room for the batch row in a Philox counter
SEED_LIMIT = 2**63
STEP_LIMIT = 2**32


def check_tensor(
    name: str,
    value: object,
    dtypes: Sequence[torch.dtype],
    *,
    like: Tensor | None = None,
    shape: Sequence[int] | None = None,
    shape_of: str = "",
) -> None:
    """Raises TypeError or ValueError unless `value` is a dense tensor of a dtype, device and shape asked for."""
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a {names} tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {names}, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, the other tensors are on {like.device}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}{shape_of}, got {list(value.shape)}")


def check_last_dim(name: str, value: Tensor) -> None:
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise ValueError(
            f"{name} must have a contiguous last dimension, got strides {list(value.stride())}; call .contiguous()"
        )


def check_float(name: str, value: object, low: float, high: float, expectation: str) -> None:
    """`low <= value <= high`, which NaN fails."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {expectation}, got {value}")


def check_int(name: str, value: object, low: int, high: int, expectation: str) -> None:
    """`low <= value < high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value < high:
        raise ValueError(f"{name} must be {expectation}, got {value}")


def split_rows(name: str, value: int | Tensor, like: Tensor, batch: int) -> tuple[int, Tensor | None]:
    """An int, or an int64 tensor (0-d for all rows, else one entry per row), as (int, None) or (0, tensor)."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int or an int64 tensor, got {type(value).__name__}")
        return value, None
    shape = () if value.dim() == 0 else (batch,)
    check_tensor(name, value, (torch.int64,), like=like, shape=shape, shape_of=" (one per row) or none")
    return 0, value


def split_seed(seed: int | Tensor, like: Tensor, batch: int) -> tuple[int, Tensor | None]:
    if batch > MAX_ROWS:
        raise ValueError(f"the batch must have at most 2^24 rows, got {batch}")
    value, rows = split_rows("seed", seed, like, batch)
    if not -SEED_LIMIT <= value < SEED_LIMIT:
        raise ValueError(f"seed must fit 64 signed bits, got {value}")
    return value, rows


def split_mask_len(mask_len: int | Tensor, ids: Tensor) -> tuple[int, Tensor | None]:
    count, counts = split_rows("mask_len", mask_len, ids, ids.shape[0])
    if count < 0:
        raise ValueError(f"mask_len must not be negative, got {count}")
    return count, counts


def split_step(step: int | Tensor, like: Tensor) -> tuple[int, Tensor | None]:
    if isinstance(step, Tensor):
        check_tensor("step", step, (torch.int64,), like=like, shape=(), shape_of=" (a scalar)")
        return 0, step
    check_int("step", step, 0, STEP_LIMIT, "an int in [0, 2^32)")
    return step, None


def check_noise(name: str, noise: Tensor | None, like: Tensor, shape: Sequence[int], shape_of: str) -> None:
    if noise is not None:
        check_tensor(name, noise, (torch.float32,), like=like, shape=shape, shape_of=shape_of)


def check_sampling(
    logits: Tensor, uncond: Tensor | None, guidance: float, temperature: float, top_k: int, top_p: float
) -> None:
    """The arguments that `sample_tokens` and `resample` share, but for their ranks."""
    check_tensor("logits", logits, LOGIT_DTYPES)
    if logits.dim() == 0:
        raise ValueError("logits must have at least one dimension, the vocabulary; got a scalar")
    if logits.shape[-1] == 0 and logits.shape[:-1].numel() > 0:
        raise ValueError(f"logits must have at least one entry per row, got shape {list(logits.shape)}")
    check_last_dim("logits", logits)
    check_float("guidance", guidance, 0.0, 1e30, "between 0 and 1e30")
    if uncond is not None:
        check_tensor("uncond", uncond, (logits.dtype,), like=logits, shape=logits.shape, shape_of=" as logits")
        check_last_dim("uncond", uncond)
    elif guidance != 0:
        raise ValueError(f"guidance {guidance} needs uncond, the logits without the condition")
    if temperature != 0:
        check_float("temperature", temperature, 1e-30, 1e30, "0 (greedy) or between 1e-30 and 1e30")
    check_int("top_k", top_k, 0, SEED_LIMIT, "0 (off) or positive")
    check_float("top_p", top_p, 5e-324, 1.0, "in (0, 1]")


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
