"""omni_block_table: which 64 x 64 blocks of a mask the CUDA attention kernels visit, and which need no mask at all.

Built once per mask on its own device (`OmniMask.block_states`), then shared by all layers, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._native import cuda_call, emulated

BLOCK = 64  # kQBlock and kKvBlock of csrc/omni_attention/mask.h
EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_rows(q: Tensor) -> int:
    """Query rows of a tile of the CUDA forward kernel: 128, or 64 where 128 would leave warps or multiprocessors idle.

    A function of sizes and dtype alone, lest results depend on the machine; 108 is an A100's multiprocessors.
    """
    small = q.size(2) <= 64 or q.size(0) * q.size(1) * (-(-q.size(2) // 128)) <= 108
    return 64 if small or q.dtype == torch.float32 else 128


_LIBRARY: Any = torch.library.Library("showo_ext", "FRAGMENT")
_LIBRARY.define("omni_block_table(Tensor intervals, SymInt kv_length) -> Tensor")


def _empty(intervals: Tensor, kv_length: int) -> Tensor:
    batch, rows = intervals.shape[:2]
    return intervals.new_empty((batch, -(-rows // BLOCK), -(-kv_length // BLOCK)), dtype=torch.uint8)


def _cuda(intervals: Tensor, kv_length: int) -> Tensor:
    states = _empty(intervals, kv_length)
    if intervals.stride()[2:] != (2, 1):
        intervals = intervals.contiguous()
    with cuda_call("omni_attention", intervals, emulated(), launcher="omni_block_table_cuda") as (module, stream):
        module.omni_block_table_cuda(
            intervals=intervals.data_ptr(),
            states=states.data_ptr(),
            sizes=(*intervals.shape[:2], kv_length, intervals.size(2)),
            intervals_strides=intervals.stride()[:2],
            stream=stream,
        )
    return states


def _cpu(intervals: Tensor, kv_length: int) -> Tensor:
    """The definition, block by block, from the dense mask: for tests, the CPU kernels have a plan of their own."""
    if emulated() is not None:
        return _cuda(intervals, kv_length)
    columns = torch.arange(kv_length)
    start, stop = intervals[..., 0, None], intervals[..., 1, None]
    dense = ((columns >= start) & (columns < stop)).any(2)  # [B, S_q, S_kv]
    states = _empty(intervals, kv_length)
    for i, rows in enumerate(dense.split(BLOCK, dim=1)):
        for j, block in enumerate(rows.split(BLOCK, dim=2)):
            full = block.flatten(1).all(1) & (block.size(2) == BLOCK)
            states[:, i, j] = torch.where(full, FULL, torch.where(block.flatten(1).any(1), PARTIAL, EMPTY))
    return states


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


_LIBRARY.impl("omni_block_table", _cpu, "CPU")
_LIBRARY.impl("omni_block_table", _cuda, "CUDA")
torch.library.register_fake("showo_ext::omni_block_table", _empty, lib=_LIBRARY)
