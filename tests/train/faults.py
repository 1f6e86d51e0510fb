"""`showo train` with faults planted in it: a program for tests, alone or under torchrun.

    python faults.py WHAT:RANK:STEP,... ARGUMENTS_OF_SHOWO_TRAIN

A fault comes before that step of that rank: the first one in the first start, the next one where torchrun has started
the ranks again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import showo.train.loop as loops
from showo.cli import main
from showo.launch import Launch


def hang() -> None:
    time.sleep(1e6)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise ArithmeticError("a planted bug")


FAULTS = {fault.__name__: fault for fault in (hang, kill, stop, fail)}


def plant(what: str, rank: int, step: int) -> None:
    train_step = loops.train_step

    def faulty(*arguments: Any) -> Any:
        if arguments[5] == step and Launch.of_this_process().rank == rank:
            FAULTS[what]()
        return train_step(*arguments)

    loops.train_step = faulty


if __name__ == "__main__":
    faults = sys.argv[1].split(",")
    what, rank, step = faults[int(os.environ["TORCHELASTIC_RESTART_COUNT"])].split(":")
    plant(what, int(rank), int(step))
    main(["train", *sys.argv[2:]])
