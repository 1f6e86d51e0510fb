"""`showo train` with a fault planted in it: a program for tests, alone or under torchrun.

    python faults.py WHAT:RANK:STEP ARGUMENTS_OF_SHOWO_TRAIN

The fault comes once, before that step of that rank; what torchrun starts again is spared.
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
    launch, train_step = Launch.of_this_process(), loops.train_step

    def faulty(*arguments: Any) -> Any:
        if arguments[5] == step and launch.rank == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            FAULTS[what]()
        return train_step(*arguments)

    loops.train_step = faulty


if __name__ == "__main__":
    what, rank, step = sys.argv[1].split(":")
    plant(what, int(rank), int(step))
    main(["train", *sys.argv[2:]])
