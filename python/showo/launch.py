"""How this process was started, and what torchrun tells the processes that it starts: nothing else reads that."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

_NAMELESS = "none"  # torchrun's run id where the user gives none


@dataclass(frozen=True)
class Launch:
    """What torchrun has told a process.

    rank: number of this process among `count`. local: its number among those of its machine.
    job: torchrun's --rdzv-id, which is the same on all machines; empty where there is none.
    by_torchrun: whether it was torchrun that has started this process.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    job: str = ""
    by_torchrun: bool = False

    @classmethod
    def of_this_process(cls) -> Launch:
        """A process that torchrun has not started is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return cls()
        rank, count, local = (int(os.environ[name]) for name in names)
        job = os.environ.get("TORCHELASTIC_RUN_ID", _NAMELESS)
        return cls(rank, count, local, "" if job == _NAMELESS else job, by_torchrun=True)


def command_with(option: str) -> str:
    """The command that has started this program, as a shell takes it, with an option added unless it is there.

    Of a process of torchrun that is torchrun's own command, where the system tells it (/proc).
    """
    words = sys.orig_argv
    if Launch.of_this_process().by_torchrun:
        words = _words_of(os.getppid()) or words
    program = Path(words[1]).name if len(words) > 1 else ""
    if program in ("showo", "torchrun"):  # installed commands: Python runs their file
        words = [program, *words[2:]]
    return shlex.join(words if option in words else [*words, option])


def _words_of(process: int) -> list[str]:
    """The command line of a process; none where there is no /proc."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []
