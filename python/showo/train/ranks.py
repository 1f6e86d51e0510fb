"""The processes of a training, called ranks, as torchrun starts them, and what they tell each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from showo.errors import ConfigError, RankError, UserError
from showo.launch import Launch

T = TypeVar("T")

# How long a rank waits for the others, which may be the time of a validation or of a save on rank 0.
_PATIENCE = timedelta(minutes=30)
# What gloo and torch's stores say where the process at the other end has gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


@dataclass(frozen=True)
class Ranks:
    """All ranks enter the methods below together, and in the same order; one that is alone has no one to wait for.

    rank: the number of this process, from 0 on. count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank speaks, validates and saves for all."""
        return self.rank == 0

    def all_of(self, value: T) -> list[T]:
        """What every rank gives, in the order of ranks: small values that pickle takes."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """What rank 0 gives."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def summed(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Numbers without dimensions, of the same names on all ranks, added up over the ranks: the same bits on all.

        Does not wait for the device.
        """
        if self.count == 1:
            return dict(figures)
        numbers = torch.stack([figure.double() for figure in figures.values()])
        dist.all_reduce(numbers)
        return dict(zip(figures, numbers.float().unbind(), strict=True))


def refuse_ranks(what: str) -> None:
    """Raises UserError where torchrun has started several processes for what is done by one."""
    if (count := Launch.of_this_process().count) > 1:
        raise UserError(f"{what} runs in one process, and torchrun has started {count}; only showo.train takes several")


def device_of_rank(name: str) -> str:
    """The device of this rank where the configuration says `name`: each rank of a machine has a GPU of its own.

    Raises ConfigError where the name is that of one GPU, which ranks do not share.
    """
    launch = Launch.of_this_process()
    if launch.count == 1 or not name.startswith("cuda"):
        return name
    if name != "cuda":
        raise ConfigError(f"device must be cuda where there are several ranks, each with its own GPU, got {name!r}")
    return f"cuda:{launch.local}"


@contextmanager
def joined_ranks(device: torch.device, *, group: bool = False) -> Iterator[Ranks]:
    """Meanwhile the ranks are connected: through NCCL on GPUs, through gloo on CPUs.

    A group that the program has made itself is used, and left. group: one is needed for one rank too, as FSDP does.

    Raises RankError where a rank loses another one: what has ended that one is said there.
    """
    launch = Launch.of_this_process()
    ranks = Ranks(launch.rank, launch.count)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if ranks.count == 1 and not group:
        yield ranks
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = HashStore() if ranks.count == 1 else None  # else torchrun's
    with _naming_lost_ranks():
        dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=ranks.rank, world_size=ranks.count)
        try:
            yield ranks
            dist.barrier()
        finally:
            # A thread of gloo may still be letting go of its last tensor, for which it needs Python's lock. Were the
            # group destroyed now, by this thread with that lock in hand, each would wait for the other.
            time.sleep(0.2)
            dist.destroy_process_group()


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _GONE):
            raise
        raise RankError("another rank has ended, or does not answer: what it has said tells why") from error
