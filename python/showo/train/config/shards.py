"""How ranks share a model."""

from __future__ import annotations

from dataclasses import dataclass

from showo.intervals import NOT_NEGATIVE, within

PARALLEL = ("none", "ddp", "fsdp")


@dataclass
class ShardOptions:
    """Of `parallel: fsdp`. shards: so many ranks, such as those of a machine, share a copy of the weights, and each
    such group has one; 0 is all ranks. offload: weights and the optimizer's state wait in the memory of the CPU, where
    the optimizer runs.
    """

    shards: int = within(NOT_NEGATIVE, 0)
    offload: bool = False
