"""A training of two ranks that is killed again and again, at random moments, and started again as its user would."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from showo.train.checkpoint import checkpoints
from tests.train.torchrun import environment

RANKS = 2
_PATIENCE = 300  # seconds, on a busy machine, until a start, some steps or an end are there


@dataclass(frozen=True)
class Kill:
    """signal: SIGTERM or SIGKILL. whole: to torchrun (and with SIGKILL all its ranks), else to one rank.
    moment: `start`, some seconds after a start; `step`, after some more steps; `save`, within one.
    """

    signal: signal.Signals
    whole: bool
    moment: str


KILLS = [
    Kill(number, whole, moment)
    for number in (signal.SIGTERM, signal.SIGKILL)
    for whole in (False, True)
    for moment in ("save", "step", "start")
]


@dataclass
class Soak:
    """config: a YAML file, with log_every=1. said: what torchrun and the ranks have said, start by start."""

    config: Path
    run: Path
    draw: random.Random
    said: list[str] = field(default_factory=list)

    def train(self, kills: list[Kill]) -> None:
        """Trains to the end, killed so often. Raises AssertionError where it does not get there."""
        process = self._start()
        for kill in kills:
            if not self._wait_for(self._moment(kill.moment), process):
                assert process.returncode in (0, 1), self.said  # nothing but the end, and what a SIGTERM asks for
                process = self._start()
                continue
            time.sleep(self.draw.uniform(0, 0.05))
            self._kill(process, kill)
            if kill.signal == signal.SIGTERM or kill.whole:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)  # a rank that was told to stop before it could heed that is started again instead
            if process.poll() is not None:
                self._note(process)
                process = self._start()
        process.wait(_PATIENCE)
        self._note(process)
        assert process.returncode == 0, self.said

    def _start(self) -> subprocess.Popen[str]:
        """As it was started first; or as the last words of the run say, or with --resume where it had no last words."""
        self._output = (self.run.parent / f"{self.run.name}-{len(self.said)}.txt").open("w+")
        found = re.findall(r"showo: this goes on with: (.*)", self.said[-1] if self.said else "")
        if found:
            words = shlex.split(found[-1])
        else:
            words = ["torchrun", "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "100"]
            words += ["-m", "showo.train", "--config", str(self.config), "--run-folder", str(self.run)]
            words += ["--resume"] if checkpoints(self.run) else []
        return subprocess.Popen(words, env=environment(), stderr=self._output, text=True, start_new_session=True)

    def _note(self, process: subprocess.Popen[str]) -> None:
        self._output.seek(0)
        self.said.append(self._output.read())
        self._output.close()

    def _wait_for(self, moment: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
        """False where the process ends before that moment."""
        until = time.monotonic() + _PATIENCE
        while process.poll() is None:
            if moment():
                return True
            assert time.monotonic() < until, self.said
            time.sleep(0.005)
        return False

    def _moment(self, name: str) -> Callable[[], bool]:
        if name == "start":
            until = time.monotonic() + self.draw.uniform(0, 10)
            return lambda: time.monotonic() > until
        if name == "save":
            return lambda: any((self.run / "checkpoints").glob("*.tmp"))
        wanted = steps_done(self.run) + self.draw.randint(1, 3)
        return lambda: steps_done(self.run) >= wanted

    def _kill(self, process: subprocess.Popen[str], kill: Kill) -> None:
        ranks = children(process.pid)
        if kill.whole:
            killed = [process.pid, *ranks] if kill.signal == signal.SIGKILL else [process.pid]
        else:
            killed = [self.draw.choice(ranks)] if ranks else []
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, kill.signal)


def children(pid: int) -> list[int]:
    return sorted(child for child, parent in _parents() if parent == pid)


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])


def losses(run: Path) -> list[tuple[int, float]]:
    """Of all steps that are logged; a line that is being written does not count."""
    path = run / "log.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    found = [json.loads(line) for line in whole]
    return [(line["step"], line["train/loss"]) for line in found if "train/loss" in line]


def steps_done(run: Path) -> int:
    return max((step for step, _ in losses(run)), default=0)
