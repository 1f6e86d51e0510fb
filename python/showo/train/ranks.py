"""The processes of a training, called ranks, as torchrun starts them, and what they tell each other."""

from __future__ import annotations

import atexit
import gc
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from showo.errors import ConfigError, RankError, UserError
from showo.launch import Launch
from showo.train.watchdog import Watchdog

T = TypeVar("T")

_SPARE = timedelta(minutes=1)  # ranks wait for each other so much longer than the watchdog does, which says more
# What gloo and torch's stores say where the process at the other end has gone.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "connectFullMesh failed",
)


@dataclass(frozen=True)
class Ranks:
    """All ranks enter the methods below together, and in the same order; one that is alone has no one to wait for.

    rank: the number of this process, from 0 on. count: how many there are. watchdog: ends a rank that hangs.
    """

    rank: int = 0
    count: int = 1
    watchdog: Watchdog | None = None

    @property
    def first(self) -> bool:
        """Whether this rank speaks, validates and saves for all."""
        return self.rank == 0

    def expect(self, what: str, seconds: float) -> None:
        """The next call of this method is to come within so many seconds, as `Watchdog.expect`, if there is one."""
        if self.watchdog is not None:
            self.watchdog.expect(what, seconds)

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
def joined_ranks(device: torch.device, patience: int, *, group: bool = False) -> Iterator[Ranks]:
    """Meanwhile the ranks are connected: through NCCL on GPUs, through gloo on CPUs.

    A group that the program has made itself is used, and left. Ranks that torchrun has started have a watchdog.

    patience: seconds that a rank waits for the others; also those of the start, by the watchdog.
    group: one is needed for one rank too, as FSDP does.

    Raises RankError where a rank loses another one: what has ended that one is said there, or by torchrun.
    """
    launch = Launch.of_this_process()
    if device.type == "cuda" and device.index is not None:  # without a number it is the current one already
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    with Watchdog(launch.rank) if launch.by_torchrun else nullcontext() as watchdog:
        ranks = Ranks(launch.rank, launch.count, watchdog)
        ranks.expect("the start", patience)
        if ranks.count == 1 and not group:
            yield ranks
        else:
            with _group(ranks, device, timedelta(seconds=patience) + _SPARE):
                yield ranks


@contextmanager
def _group(ranks: Ranks, device: torch.device, timeout: timedelta) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = HashStore() if ranks.count == 1 else _store_of_this_start(ranks, timeout)
    with _naming_lost_ranks(store):
        dist.init_process_group(backend, timeout=timeout, store=store, rank=ranks.rank, world_size=ranks.count)
        try:
            yield
            dist.barrier()
        finally:
            leave_group()


_left: list[Any] = []  # groups


def leave_group() -> None:
    """In place of torch.distributed.destroy_process_group, after which this process may wait for ever.

    Who lets go of a group last waits for its threads; and a thread of gloo may wait for Python's lock, to let go of its
    last tensor. Where that is a variable of Python, the lock is free meanwhile; but DDP, which also has the group,
    waits with the lock in its hand. So a group is kept here until the program ends and what has used it is gone. Python
    must not end before: threads that ask for its lock later take the process down (SIGABRT).
    """
    _left.append(dist.group.WORLD)
    dist.destroy_process_group()


@atexit.register
def _let_go() -> None:
    gc.collect()
    _left.clear()


def _store_of_this_start(ranks: Ranks, timeout: timedelta) -> Store:
    """torchrun's store, without what earlier ranks have left in it.

    torchrun keeps it when it starts all ranks again, and torch would take addresses of the dead from it. No number
    tells the starts apart on all machines. So rank 0 makes a name for this start, and the others call back: a name
    that is left of an earlier start is one under which rank 0 has not heard of this very process.
    """
    store = next(rendezvous("env://", timeout=timeout))[0]
    me = secrets.token_hex(8)
    if ranks.first:
        store.set("start", me)
        heard = [store.get(f"{me} rank {rank}").decode() for rank in range(1, ranks.count)]
        store.set(f"{me} all", " ".join(heard))
        return PrefixStore(me, store)
    while True:
        start = store.get("start").decode()
        store.set(f"{start} rank {ranks.rank}", me)
        while store.get("start").decode() == start:
            if store.check([f"{start} all"]) and me in store.get(f"{start} all").decode():
                return PrefixStore(start, store)
            time.sleep(0.05)


@contextmanager
def _naming_lost_ranks(store: Store) -> Iterator[None]:
    """store: that of the ranks, where the first one that loses another tells those that are left that it speaks."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _GONE):
            raise
        told = _count_up(store, "ranks that have lost another") > 1
        reason = "another rank has ended, or does not answer; its last words, or torchrun's about it, tell why"
        raise RankError(reason, told=told) from error


def _count_up(store: Store, name: str) -> int:
    """How many ranks, this one included, have counted; 1 where the store has ended with another one."""
    store.set_timeout(timedelta(seconds=5))
    try:
        return store.add(name, 1)
    except RuntimeError:
        return 1
