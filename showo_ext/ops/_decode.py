"""The CUDA path of omni_attention for few query rows against a long kv: a launch that splits kv, one that combines.

It needs no block table: the kernel reads the rows' intervals itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._native import launch
from showo_ext.ops._attention_inputs import aligned, launch_arguments
from showo_ext.ops._mask_plan import DECODED_ROWS, MaskPlan

PACKED_ROWS = 64  # kDecodeRows of csrc/omni_attention/decode_tile.cuh
MAX_SPLITS = 128  # kMaxSplits there


def splits(batch: int, heads: int, kv_heads: int, q_length: int, kv_length: int) -> int:
    """Into how many shares kv is dealt: two thread blocks for each multiprocessor of an A100, of which it has 108, but
    no share below 256 columns, lest the combine kernel cost more than it saves.

    A function of sizes alone, lest results depend on the machine.
    """
    blocks = batch * kv_heads * -(-(heads // kv_heads * q_length) // PACKED_ROWS)
    return max(1, min(2 * 108 // blocks, kv_length // 256, MAX_SPLITS))


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: MaskPlan,
    scale: float,
    out: Tensor,
    lse: Tensor,
    *,
    softcap: float = 0.0,
    num_splits: int | None = None,
) -> None:
    """Writes out and lse. q: 1 to DECODED_ROWS rows; num_splits: 1 to MAX_SPLITS, or what `splits` says."""
    assert q.size(2) <= DECODED_ROWS
    if num_splits is None:
        num_splits = splits(q.size(0), q.size(1), k.size(1), q.size(2), k.size(2))
    q, k, v = aligned(q), aligned(k), aligned(v)
    partial = stats = None
    if num_splits > 1:
        partial = torch.empty((*q.shape[:3], num_splits, q.size(3)), dtype=torch.float32, device=q.device)
        stats = torch.empty((*q.shape[:3], num_splits, 2), dtype=torch.float32, device=q.device)
    launch(
        "omni_attention_decode",
        q,
        **launch_arguments(q, k, v, plan, scale, softcap),
        out=out,
        lse=lse,
        out_strides=out.stride()[:3],
        splits=num_splits,
        partial_out=partial,
        partial_stats=stats,
    )
