"""Micro-batches by number: made ahead by worker processes, in order, the same whoever makes them.

The state of the data is the number of the next micro-batch and nothing else: a run that goes on begins at another one.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from showo.errors import DataError, UserError

T = TypeVar("T")


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
        """Micro-batches start .. end - 1.

        Raises what `make` raises, if it is a UserError, as it was raised; DataError where a worker dies.
        """
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
        items = iter(loader)
        workers = [process for process in active_children() if process not in others]
        try:
            for _ in range(start, end):
                began = time.monotonic()
                with naming_dead_workers():
                    item = next(items)
                self.seconds_waited += time.monotonic() - began
                if isinstance(item, UserError):
                    raise item
                yield item
        finally:
            del items  # ends the workers, which the traceback of an error would keep
            for worker in workers:
                _end(worker)


def _end(worker: BaseProcess) -> None:
    """Makes sure that a worker is gone: it ignores SIGTERM, with which Python ends what is left when it exits itself,
    and then waits for it. torch may fail to end the others where one has died.
    """
    with suppress(RuntimeError):  # torch's, that a worker has died
        if worker.is_alive():
            worker.kill()
        worker.join()


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """DataError in place of torch's RuntimeError about a worker that has died; it may come wherever its parent is."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(
            r"DataLoader worker \(pids?(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([^.]*))?", str(error)
        )
        if found is None:
            raise
        how = f" of signal {found[2].strip()}" if found[2] else ""
        raise DataError(
            f"data: worker process {found[1]} has died{how}; a lack of memory is the likeliest cause: fewer workers, "
            "or a smaller prefetch, need less"
        ) from error.with_traceback(None)  # its frames hold the other workers


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
