"""Running the command line inside a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from showo.cli import main

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("showo: ")
    return captured.err


@contextmanager
def started(
    *arguments: object, program: Sequence[object] = ("-m", "showo"), errors: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """The command line, or another program, as a process of its own, which is gone at the end of the block.

    Its output can be read; what it writes to `errors` too, unless that is a file.
    """
    paths = [str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, *map(str, program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
