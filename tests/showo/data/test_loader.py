"""Micro-batches made ahead: the same whoever makes them, from wherever a run goes on; and workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from showo.data.loader import Loader
from showo.errors import DataError


def squared(position: int) -> torch.Tensor:
    return torch.tensor([position, position**2])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_micro_batches_come_in_order_from_any_number_of_workers(workers: int) -> None:
    loader = Loader(squared, workers=workers, prefetch=2)
    for start, end in ((0, 7), (5, 7), (7, 7)):
        found = [item.tolist() for item in loader.between(start, end)]
        assert found == [[position, position**2] for position in range(start, end)]


def test_the_wait_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("showo.data.loader.time.monotonic", lambda: clock[0])

    def slow(position: int) -> int:
        clock[0] += 1
        return position

    loader = Loader(slow, workers=0, prefetch=1)
    for _ in loader.between(0, 4):
        clock[0] += 100  # of the one who uses the data
    assert loader.seconds_waited == 4


def broken(position: int) -> int:
    if position == 2:
        raise DataError("shard.tar: sample 2 is damaged")
    return position


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_it_was_raised(workers: int) -> None:
    items = Loader(broken, workers=workers, prefetch=2).between(0, 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(DataError) as info:
        next(items)
    assert str(info.value) == "shard.tar: sample 2 is damaged"


def killed(position: int) -> int:
    if position == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return position


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks for dead workers ten times a second, not every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.mark.usefixtures("quick")
def test_workers_that_die_again_and_again_are_named() -> None:
    items = Loader(killed, workers=2, prefetch=2).between(0, 3)
    with (
        pytest.warns(UserWarning, match=r"worker process \d+ has died .exit code -9.; its work is done again") as said,
        pytest.raises(
            DataError,
            match=r"worker process \d+ has died .exit code -9., 4 times before micro-batch 1 was there.*memory",
        ),
    ):
        list(items)
    assert len(said) == 3


@dataclass(frozen=True)
class KilledOnce:
    """Makes what `squared` does; but the worker that first makes one of `positions` dies, after some work."""

    folder: Path
    positions: tuple[int, ...]

    def __call__(self, position: int) -> torch.Tensor:
        if position in self.positions and not (trace := self.folder / str(position)).exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return squared(position)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_work_of_a_worker_that_dies_is_done_again(tmp_path: Path, workers: int) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    positions = (3, 4, 8, 12, 16)  # more often than they may before one and the same micro-batch
    items = Loader(KilledOnce(tmp_path, positions), workers=workers, prefetch=2).between(2, 20)
    with pytest.warns(UserWarning, match="has died .exit code -9.; its work is done again") as said:
        found = [item.tolist() for item in items]
    assert all("has died (exit code" in str(warning.message) for warning in said if "data: " in str(warning.message))
    assert found == [[position, position**2] for position in range(2, 20)]
    assert signal.getsignal(signal.SIGCHLD) is before  # no death interrupts what the process is doing


@pytest.fixture
def handler_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an ordinary DataLoader leaves behind in its process."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()
    assert signal.getsignal(signal.SIGCHLD) is not before
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("quick", "handler_of_torch")
def test_a_death_does_not_interrupt_a_step_after_other_loaders() -> None:
    items = Loader(squared, workers=1, prefetch=1).between(2, 6)
    found = [next(items).tolist()]
    for worker in active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
        wait([worker.sentinel])
    with pytest.warns(UserWarning, match="has died .exit code -9.; its work is done again"):
        found += [item.tolist() for item in items]
    assert found == [[position, position**2] for position in range(2, 6)]


def pid_after(position: int) -> int:
    if position == 1:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    return position


def test_workers_leave_signals_to_the_process_that_trains() -> None:
    assert list(Loader(pid_after, workers=1, prefetch=1).between(0, 3)) == [0, 1, 2]


def test_each_worker_makes_so_many_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int | None]] = []

    class Spy(DataLoader[int]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append((options["num_workers"], options["prefetch_factor"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("showo.data.loader.DataLoader", Spy)
    for workers in (1, 0):
        assert len(list(Loader(squared, workers=workers, prefetch=3).between(0, 2))) == 2
    assert asked == [(1, 3), (0, None)]  # without workers nothing is made ahead


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(Loader(squared, workers=1, prefetch=1).between(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:data. worker process")
@pytest.mark.parametrize(("make", "error"), [(squared, None), (broken, DataError), (killed, DataError)])
def test_nothing_is_left_of_workers_that_are_no_longer_needed(
    make: Callable[[int], Any], error: type[Exception] | None
) -> None:
    """Also while the error of one of them is being handled: what is left at the end would keep the process waiting."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("no list of child processes")
    before = set(children.read_text().split())
    items = Loader(make, workers=2, prefetch=2).between(0, 100)
    next(items)
    assert len(set(children.read_text().split()) - before) >= 1
    if error is None:
        items.close()
    else:
        with pytest.raises(error):
            list(items)
    assert set(children.read_text().split()) <= before
