"""omni_block_table: which 64 x 64 blocks of a mask the CUDA attention kernels visit, and which need no mask at all.

Built once per mask on its own device (`OmniMask.block_states`), then shared by all layers, forward and backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._native import launch, runs_on_cuda
from showo_ext._operator import Operator
from showo_ext.ops._attention_inputs import pairs_contiguous

BLOCK = 64  # kQBlock and kKvBlock of csrc/omni_attention/mask.h
EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_rows(q: Tensor) -> int:
    """Query rows of a tile of the CUDA forward kernel: 128, or 64 where 128 would leave warps or multiprocessors idle.

    A function of sizes and dtype alone, lest results depend on the machine; 108 is an A100's multiprocessors.
    """
    small = q.size(2) <= 64 or q.size(0) * q.size(1) * (-(-q.size(2) // 128)) <= 108
    return 64 if small or q.dtype == torch.float32 else 128


def _empty(intervals: Tensor, kv_length: int) -> Tensor:
    batch, rows = intervals.shape[:2]
    return intervals.new_empty((batch, -(-rows // BLOCK), -(-kv_length // BLOCK)), dtype=torch.uint8)


def _block_table(intervals: Tensor, kv_length: int) -> Tensor:
    states = _empty(intervals, kv_length)
    if not runs_on_cuda(intervals):
        _fill(states, intervals, kv_length)
        return states
    intervals = pairs_contiguous(intervals)
    launch(
        "omni_block_table",
        intervals,
        intervals=intervals,
        states=states,
        sizes=(*intervals.shape[:2], kv_length, intervals.size(2)),
        intervals_strides=intervals.stride()[:2],
    )
    return states


def _fill(states: Tensor, intervals: Tensor, kv_length: int) -> None:
    """The definition, block by block, from the dense mask: for tests, the CPU kernels have a plan of their own."""
    columns = torch.arange(kv_length, dtype=torch.int64)
    start, stop = intervals[..., 0, None], intervals[..., 1, None]
    dense = ((columns >= start) & (columns < stop)).any(2)  # [B, S_q, S_kv]
    for i, rows in enumerate(dense.split(BLOCK, dim=1)):
        for j, block in enumerate(rows.split(BLOCK, dim=2)):
            full = block.flatten(1).all(1) & (block.size(2) == BLOCK)
            states[:, i, j] = torch.where(full, FULL, torch.where(block.flatten(1).any(1), PARTIAL, EMPTY))


def tile_order(states: Tensor, tile_rows: int) -> Tensor:
    """The order in which tiles of `tile_rows` (64 or 128) query rows should start, most visited blocks first.

    states: uint8 [B, ceil(S_q / 64), blocks]. Returns int32 [B * tiles, 2]: batch entry, tile.
    """
    visited = states != EMPTY
    if tile_rows > BLOCK:
        rows = torch.nn.functional.pad(visited, (0, 0, 0, states.size(1) % 2))
        visited = rows.unflatten(1, (-1, 2)).any(2)
    tiles = visited.size(1)
    places = visited.sum(-1).flatten().argsort(descending=True, stable=True)
    return torch.stack([places // tiles, places % tiles], 1).int()


Operator("omni_block_table(Tensor intervals, SymInt kv_length) -> Tensor", _block_table, _empty)
