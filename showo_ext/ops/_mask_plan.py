"""The plan of a mask: what the attention kernels visit, made once per mask on its own device.

An `OmniMask` says what rows see; its `MaskPlan` says which blocks of rows and columns hold anything to compute, and on
CUDA which tiles of rows start first. `plan_of` keeps the plan with the mask, so all layers of a model share it, forward
and backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from showo_ext._checks import check_same_device, check_tensor
from showo_ext._inference import normal_tensors
from showo_ext._native import launch, native, runs_on_cuda
from showo_ext._operator import Operator, transforms_are_active
from showo_ext.mask import OmniMask

BLOCK = 64  # kQBlock and kKvBlock of csrc/omni_attention/mask.h
DECODED_ROWS = 16  # up to so many query rows take the CUDA decode kernels; one m16 tile of the tensor cores
EMPTY, PARTIAL, FULL = 0, 1, 2

PLAN_SCHEMA = "Tensor intervals, Tensor? states, Tensor? seen, Tensor? order, int tile_rows"


class MaskPlan(NamedTuple):
    """A mask as the attention operators take it, in the order of `PLAN_SCHEMA`.

    intervals: int32 [B or 1, S_q, K, 2], the mask's; the pairs of a row are contiguous.
    states: uint8 [B or 1, ceil(S_q / block_rows), ceil(S_kv / 64)], EMPTY, PARTIAL or FULL; what no row sees is EMPTY
        and never visited.
    seen: bool [B or 1, 64 ceil(S_kv / 64)], whether some row of the batch entry sees the column. States and seen
        columns are the block table. Both are None for the CUDA decode kernels, which look at the intervals instead.
    order: int32 [tiles, 2], the (batch entry, tile) of all tiles of `tile_rows` query rows, most work first; None where
        the forward kernel has no such tiles: on the CPU and for the CUDA decode kernels.
    tile_rows: 64 or 128; 0 where there is no order.
    """

    intervals: Tensor
    states: Tensor | None
    seen: Tensor | None
    order: Tensor | None
    tile_rows: int


def plan_of(mask: OmniMask, q: Tensor, *, trained: bool, capped: bool = False) -> MaskPlan:
    """The plan of a mask for queries like q [B, H, S_q, D].

    trained: whether a backward pass may follow; capped: whether the scores have a softcap.

    Inside a traced graph only masks that are made in the graph keep their plan: what a graph leaves behind in its
    arguments may lie in memory that the next run of a CUDA graph overwrites. Nor is a plan kept that is made inside
    torch.func, where tensors end with the transform.
    """
    on_cuda = runs_on_cuda(q)
    few_rows = on_cuda and q.size(2) <= DECODED_ROWS
    if q.device.type == "meta" or (few_rows and not trained):
        return MaskPlan(_pairs_contiguous(mask.intervals), None, None, None, 0)
    rows = tile_rows(q, capped) if on_cuda and not few_rows else 0
    tracing = torch.compiler.is_compiling()
    if not mask._kept.traced if tracing else transforms_are_active():
        return make_plan(mask, rows)
    plans, key = mask._kept.plans, (0 if tracing else block_rows(q), rows)  # 0: as many as when the graph runs
    if key not in plans:
        tables = [(plan.states, plan.seen) for (blocks, _), plan in plans.items() if blocks == key[0]]
        with normal_tensors():
            plans[key] = make_plan(mask, rows, tables[0] if tables else None)
    return plans[key]


def make_plan(mask: OmniMask, rows: int, table: tuple[Tensor, Tensor] | None = None) -> MaskPlan:
    """A plan with tiles of `rows` query rows (0: none); table: the states and seen columns, if made already."""
    intervals = _pairs_contiguous(mask.intervals)
    states, seen = _BLOCK_TABLE(intervals, mask.kv_length) if table is None else table
    return MaskPlan(intervals, states, seen, tile_order(states, rows) if rows else None, rows)


def overwrite_mask(mask: OmniMask, intervals: Tensor) -> None:
    """Writes other intervals into a mask's own memory, and what follows from them into its plans and masks of its rows.

    For a captured CUDA graph, which reads the same memory at every replay: after this call it computes under the other
    mask. Nothing else should see the mask's intervals. Nothing waits for the device.

    Args:
        mask: no rows of it may have been taken by `OmniMask.take_rows`.
        intervals: int32 [b, S_q, K, 2], for the first b batch entries; the others stay.

    Raises:
        ValueError: shapes that do not fit; rows that were taken by an index.
    """
    check_tensor("intervals", intervals, (torch.int32,))
    check_same_device("intervals", intervals.device, "mask", mask.intervals)
    if intervals.dim() != 4 or intervals.size(0) > mask.batch_size or intervals.shape[1:] != mask.intervals.shape[1:]:
        expected = f"up to {mask.batch_size} entries of {list(mask.intervals.shape[1:])}"
        raise ValueError(f"intervals has shape {list(intervals.shape)}, expected {expected}")
    if any(index is not None for _, index in mask._kept.selections.values()):
        raise ValueError("mask has rows that were taken by an index, expected rows that were taken by a slice")
    mask.intervals[: len(intervals)] = intervals
    _renew(mask)


def _renew(mask: OmniMask) -> None:
    """Makes what is kept with a mask again, in place, from intervals that were written into."""
    for (_, rows), plan in mask._kept.plans.items():
        with normal_tensors():
            renewed = make_plan(mask, rows)
        for kept, new in zip(plan[:4], renewed[:4], strict=True):  # the tensors; tile_rows stays
            if kept is not None and new is not None and kept is not new:
                kept.copy_(new)
    for key, (selected, _) in mask._kept.selections.items():
        assert isinstance(key, tuple)  # start, stop, step
        selected.intervals.copy_(mask.intervals[:, slice(*key)])
        _renew(selected)


def _pairs_contiguous(intervals: Tensor) -> Tensor:
    return intervals if intervals.stride()[2:] == (2, 1) else intervals.contiguous()


# ---- the block table ------------------------------------------------------------------------------------------------


def block_rows(x: Tensor) -> int:
    """Query rows of a block, for kernels on x's device: on the CPU it depends on the instruction set."""
    return native().omni_attention_block_rows() if x.device.type == "cpu" and not runs_on_cuda(x) else BLOCK


def states_shape(intervals: Tensor, kv_length: int) -> tuple[int, int, int]:
    batch, rows = intervals.shape[:2]
    return batch, -(-rows // block_rows(intervals)), -(-kv_length // BLOCK)


def _empty(intervals: Tensor, kv_length: int) -> tuple[Tensor, Tensor]:
    shape = states_shape(intervals, kv_length)
    states = intervals.new_empty(shape, dtype=torch.uint8)
    return states, intervals.new_empty((shape[0], shape[2] * BLOCK), dtype=torch.bool)


def _block_table(intervals: Tensor, kv_length: int) -> tuple[Tensor, Tensor]:
    """The states of the blocks of a mask and the columns that are seen, as in `MaskPlan`.

    The last block of columns may be incomplete: on CUDA it is PARTIAL at most. On the CPU an interval outside
    0 <= start <= stop <= kv_length is a ValueError; on CUDA, where looking would stall the stream, it is cut.
    """
    states, seen = _empty(intervals, kv_length)
    intervals = _pairs_contiguous(intervals)
    launch(
        "omni_block_table",
        intervals,
        intervals=intervals,
        states=states,
        seen=seen,
        sizes=(*intervals.shape[:2], kv_length, intervals.size(2)),
        intervals_strides=intervals.stride()[:2],
    )
    return states, seen


_BLOCK_TABLE = Operator(
    "omni_block_table(Tensor intervals, SymInt kv_length) -> (Tensor states, Tensor seen)", _block_table, _empty
)


# ---- tiles of the CUDA forward kernels ------------------------------------------------------------------------------


def tile_rows(q: Tensor, capped: bool = False) -> int:
    """Query rows of a tile of the CUDA forward kernel: 128, or 64 where 128 would leave warps or multiprocessors idle,
    and where the large tile has no registers: for a softcap, or a head size of 256.

    A function of sizes and dtype alone, lest results depend on the machine; 108 is an A100's multiprocessors.
    """
    small = q.size(2) <= 64 or q.size(0) * q.size(1) * (-(-q.size(2) // 128)) <= 108
    return 64 if small or capped or q.size(3) > 128 or q.dtype == torch.float32 else 128


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
