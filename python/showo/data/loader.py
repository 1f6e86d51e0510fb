"""Micro-batches by number: made ahead by worker processes, in order, the same whoever makes them.

The state of the data is the number of the next micro-batch and nothing else: a run that goes on begins at another one.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from showo.errors import DataError, UserError

T = TypeVar("T")

_ATTEMPTS_AGAIN = 3  # so often workers may die, one after the other, before there is a micro-batch
_CAUSE = "a lack of memory is the likeliest cause: fewer workers, or a smaller prefetch, need less"


class Loader(Generic[T]):
    """Gives make(start), make(start + 1), ...

    make: pure function of its argument. It is copied to the workers, which cannot use a GPU.
    workers: processes that make micro-batches ahead; 0 makes each when it is asked for.
    prefetch: how many micro-batches each worker makes ahead.
    seconds_waited: how long `between` has kept its caller waiting, in all.
    """

    def __init__(self, make: Callable[[int], T], *, workers: int, prefetch: int) -> None:
        self.make, self.workers, self.prefetch = make, workers, prefetch
        self.seconds_waited = 0.0

    def between(self, start: int, end: int) -> Generator[T, None, None]:
        """Micro-batches start .. end - 1. Those of a worker that dies are made by other ones, with a warning.

        Raises what `make` raises, if it is a UserError, as it was raised; DataError where workers die again and again
        before the same micro-batch is there.
        """
        deaths = 0
        while start < end:
            try:
                for item in self._made(start, end):
                    yield item
                    start, deaths = start + 1, 0
            except _WorkersDied as death:
                deaths += 1
                if deaths > _ATTEMPTS_AGAIN:
                    raise DataError(
                        f"data: {death}, {deaths} times before micro-batch {start} was there; {_CAUSE}"
                    ) from None
                warnings.warn(f"data: {death}; its work is done again; {_CAUSE}", stacklevel=2)

    def _made(self, start: int, end: int) -> Generator[T, None, None]:
        """Micro-batches start .. end - 1; raises _WorkersDied, and what `make` raises."""
        loader: DataLoader[Any] = DataLoader(
            _Guarded(self.make),
            batch_size=None,
            sampler=range(start, end),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            worker_init_fn=_begin_worker,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else torch draws from the caller's random state
        )
        others = active_children()
        with _no_interruption_by_deaths():
            items = iter(loader)
            _forget_workers(items)
        workers = [process for process in active_children() if process not in others]
        try:
            for _ in range(start, end):
                began = time.monotonic()
                with _noticing_deaths(workers):
                    item = next(items)
                self.seconds_waited += time.monotonic() - began
                if isinstance(item, UserError):
                    raise item
                yield item
        finally:
            for worker in workers:
                _end(worker)
            del items  # with its queues, which the traceback of an error would keep


class _WorkersDied(Exception):
    """Says which worker has died, and how."""


def _end(worker: BaseProcess) -> None:
    """Makes sure that a worker is gone: it ignores SIGTERM, with which torch and Python would end it."""
    if worker.is_alive():
        worker.kill()
    worker.join()


def _forget_workers(items: Any) -> None:
    """A handler of SIGCHLD that an iterator of torch has installed before knows nothing of the workers of `items`."""
    if getattr(items, "_worker_pids_set", False):  # as torch itself does at the end of an iterator
        torch._C._remove_worker_pids(id(items))
        items._worker_pids_set = False


@contextmanager
def _no_interruption_by_deaths() -> Iterator[None]:
    """Iterators that torch makes meanwhile install no handler of SIGCHLD: deaths are noticed where `next` waits.

    As torch has it, a death raises an error wherever the process is, such as in the middle of a step.
    """
    if threading.current_thread() is not threading.main_thread():  # there torch changes nothing
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _noticing_deaths(workers: list[BaseProcess]) -> Iterator[None]:
    """_WorkersDied in place of any error that comes of it: torch's own, or that a tensor's way has been cut off."""
    try:
        yield
    except Exception as error:
        ended = wait([worker.sentinel for worker in workers], timeout=1)
        dead = [worker for worker in workers if worker.sentinel in ended]
        if not dead:
            raise
        for worker in dead:
            worker.join()
        named = ", ".join(f"worker process {worker.pid} has died (exit code {worker.exitcode})" for worker in dead)
        raise _WorkersDied(named) from error.with_traceback(None)


class _Guarded(Dataset[Any]):
    """Gives a UserError as a value: torch would put a traceback into the message of one that a worker raises."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> Any:
        try:
            return self.make(index)
        except UserError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item


def _begin_worker(number: int) -> None:
    """A Ctrl-C, or a scheduler's SIGTERM, reaches all processes: this one has to serve the step that is to be saved."""
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
