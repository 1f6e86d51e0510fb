"""The lock of a run folder: one live owner, named; what dead processes leave behind does not lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from showo.errors import OutputError, RunInUseError
from showo.lock import LOCK_NAME, Owner, run_lock

HOLD = """
import os, sys, time
from pathlib import Path
from showo.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # as data workers are made
        print(os.getpid(), flush=True)
    time.sleep(100)
"""


@contextmanager
def other_process(run: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and the pid of a worker that it has forked."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            yield process, worker
        finally:
            os.kill(worker, signal.SIGKILL)
            process.kill()


def test_another_process_is_named_and_its_death_frees_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with other_process(run) as (process, _):
        holder = rf"run is in use by process {process.pid} on {os.uname().nodename}$"
        with pytest.raises(RunInUseError, match=holder), run_lock(run):
            pass
        process.kill()
        process.wait()
        with run_lock(run) as left_behind:  # although its worker lives on
            assert left_behind is not None
            assert left_behind.pid == process.pid
    assert list(run.iterdir()) == []


def test_a_run_is_locked_against_its_own_process_too(tmp_path: Path) -> None:
    with run_lock(tmp_path) as left_behind:
        assert left_behind is None
        with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
            pass
        with pytest.raises(RunInUseError), run_lock(tmp_path):  # the attempt has not freed it
            pass
    with run_lock(tmp_path) as left_behind:
        assert left_behind is None
    assert list(tmp_path.iterdir()) == []


def test_an_error_frees_the_run_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        with run_lock(tmp_path / "run"):
            (tmp_path / "run" / "log").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(OutputError, match="lock cannot be written: Is a directory"), run_lock(tmp_path):
        pass


HERE = Owner.this_process()
REUSED = replace(HERE, started=HERE.started - 1)  # this pid, given to a process before
GONE = replace(HERE, pid=2**22 + 1)  # above any pid
REBOOTED = replace(HERE, kernel="boot 0 pid:[1]")
ELSEWHERE = replace(REBOOTED, host="elsewhere")


@pytest.mark.parametrize("owner", [REUSED, GONE, REBOOTED, ELSEWHERE])
def test_what_nobody_holds_is_stale(tmp_path: Path, owner: Owner) -> None:
    (tmp_path / LOCK_NAME).write_text(json.dumps(asdict(owner)))
    with run_lock(tmp_path) as left_behind:
        assert left_behind == owner


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_damaged_lock_file_that_nobody_holds_is_stale(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with run_lock(tmp_path) as left_behind:
        assert left_behind is None


@pytest.mark.parametrize(("owner", "free"), [(HERE, False), (REUSED, True), (GONE, True), (ELSEWHERE, False)])
def test_file_systems_without_locks_go_by_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Owner, free: bool
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LOCK_NAME).write_text(json.dumps(asdict(owner)))
    if free:
        with run_lock(tmp_path) as left_behind:
            assert left_behind == owner
        return
    named = f"in use by process {owner.pid} on {owner.host}"
    with pytest.raises(RunInUseError, match=named) as info, run_lock(tmp_path):
        pass
    assert ("if that process is gone, delete" in str(info.value)) == (owner == ELSEWHERE)


def test_a_lock_file_deleted_between_opening_and_locking_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, deleted = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not deleted:
            deleted.append((tmp_path / LOCK_NAME).unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
