"""Layouts and head sizes that the attention kernels take, and the arguments that their launchers have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._checks import HEAD_DIMS, in_autocast
from showo_ext._native import Argument, runs_on_cuda
from showo_ext.ops._mask_plan import MaskPlan, states_shape

MAX_ROW_BYTES = 1 << 25  # kMaxRowBytes of csrc/omni_attention/checks.h


WIDE = 256  # a head size for which CUDA has kernels for 16 bits, and no backward: see csrc/omni_attention/head_dim.h


def check_head_dim(q: Tensor, *, trained: bool) -> None:
    """trained: whether a backward pass may follow."""
    head_dim, largest, where = q.size(-1), WIDE, ""
    if runs_on_cuda(q) and (trained or (q.dtype == torch.float32 and not in_autocast(q))):
        largest = HEAD_DIMS[-1]
        where = f" here ({WIDE} on the CPU, and on CUDA in 16 bits where no gradient is asked for)"
    if head_dim % 8 or not 0 < head_dim <= largest:
        raise ValueError(f"q has a head_dim of {head_dim}, expected a multiple of 8 up to {largest}{where}")


def pad_head_dim(x: Tensor) -> Tensor:
    """x with zeros behind its rows, up to the next head size that has kernels: zeros add nothing to a score, and their
    outputs are zeros."""
    more = next(size for size in (*HEAD_DIMS, WIDE) if size >= x.size(-1)) - x.size(-1)
    if not more:
        return x
    if x.stride(1) < x.stride(2):  # [B, S, H, D] in memory, and so is the result
        return torch.nn.functional.pad(x.transpose(1, 2), (0, more)).transpose(1, 2)
    return torch.nn.functional.pad(x, (0, more))


def rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def strides_fit(x: Tensor) -> bool:
    """Whether the CUDA kernels take these strides: rows at multiples of 16 bytes, less than MAX_ROW_BYTES apart."""
    steps = [stride * x.element_size() for stride in x.stride()[:3]]
    return x.stride(3) == 1 and all(s >= 0 and s % 16 == 0 for s in steps) and steps[2] < MAX_ROW_BYTES


def aligned(x: Tensor) -> Tensor:
    """x, or a contiguous copy where its rows do not lie as the CUDA kernels' copies need them."""
    return x if strides_fit(x) and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def launch_arguments(
    q: Tensor, k: Tensor, v: Tensor, plan: MaskPlan, scale: float, softcap: float = 0.0
) -> dict[str, Argument]:
    """What forward, decode and backward launchers have in common."""
    intervals, states = plan.intervals, plan.states
    expected = states_shape(intervals, k.size(2))
    if states is not None and states.shape[1:] != expected[1:]:
        raise ValueError(f"states has shape {list(states.shape)}, expected {list(expected)} for these kernels")
    return {
        "q": q,
        "k": k,
        "v": v,
        "intervals": intervals,
        "sizes": (*q.shape[:2], k.size(1), q.size(2), k.size(2), q.size(3), intervals.size(2)),
        "q_strides": q.stride()[:3],
        "k_strides": k.stride()[:3],
        "v_strides": v.stride()[:3],
        "intervals_strides": (0 if intervals.size(0) == 1 else intervals.stride(0), intervals.stride(1)),
        "block_states": states,
        "block_states_batch_stride": 0 if states is None or states.size(0) == 1 else states.stride(0),
        "seen": plan.seen,
        "scale": scale,
        "softcap": softcap,
        "dtype": q.dtype,
    }
