"""Layouts that the attention kernels take, and the arguments that their launchers have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._native import Argument
from showo_ext.ops._mask_plan import MaskPlan, states_shape

MAX_ROW_BYTES = 1 << 25  # kMaxRowBytes of csrc/omni_attention/checks.h


def rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def strides_fit(x: Tensor) -> bool:
    """Whether the CUDA kernels take these strides: rows at multiples of 16 bytes, less than MAX_ROW_BYTES apart."""
    steps = [stride * x.element_size() for stride in x.stride()[:3]]
    return x.stride(3) == 1 and all(s >= 0 and s % 16 == 0 for s in steps) and steps[2] < MAX_ROW_BYTES


def aligned(x: Tensor) -> Tensor:
    """x, or a contiguous copy where its rows do not lie as the CUDA kernels' copies need them."""
    return x if strides_fit(x) and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def launch_arguments(q: Tensor, k: Tensor, v: Tensor, plan: MaskPlan, scale: float) -> dict[str, Argument]:
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
        "dtype": q.dtype,
    }
