"""Processes that share work, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from threading import Thread


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes. None of them outlives this one, not even where it is killed.

    Spawned, not forked: a fork copies the locks of torch's threads in whatever state they are.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
