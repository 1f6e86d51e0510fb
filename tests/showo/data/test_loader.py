"""Micro-batches made ahead: the same whoever makes them, from wherever a run goes on; and workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from showo.data.loader import Loader, naming_dead_workers
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


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(DataError, match=r"worker process \d+.* has died.*memory"), naming_dead_workers():
        list(Loader(killed, workers=1, prefetch=1).between(0, 3))


def pid_after(position: int) -> int:
    if position == 1:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    return position


def test_workers_leave_signals_to_the_process_that_trains() -> None:
    assert list(Loader(pid_after, workers=1, prefetch=1).between(0, 3)) == [0, 1, 2]


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(Loader(squared, workers=1, prefetch=1).between(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


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
        with pytest.raises(error), naming_dead_workers():
            list(items)
    assert set(children.read_text().split()) <= before
