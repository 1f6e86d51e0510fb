"""RUN/log.jsonl: figures of a run as lines of JSON, for programs that read them as the run goes on.

    {"step": 50, "time": 1764187200.5, "train/loss": 6.93, "train/lr": 0.0001}

Names are those of TensorBoard. A figure that is not finite, for which JSON has no number, is null. time: seconds since
1970, by the machine's clock.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path


class JsonLog:
    """Appends lines to a file, from which those of steps after `step`, which will be done again, are cut off first."""

    def __init__(self, path: Path, step: int) -> None:
        forget_lines_after(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        numbers = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def forget_lines_after(path: Path, step: int) -> None:
    """Cuts the file off before its first line of a later step, or that is not whole: its process ended within it.

    Steps rise within a file.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _step_of(line) > step:
                os.truncate(path, end)
                return
            end += len(line)


def _step_of(line: bytes) -> int:
    """-1 for a line that is no figures of a step."""
    try:
        found = json.loads(line)
    except ValueError:
        return -1
    number = found.get("step") if isinstance(found, dict) else None
    return number if isinstance(number, int) else -1
