"""A job of two ranks that loses one, hangs, fails or is told to stop: what is said, and that it goes on by itself."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from showo import launch
from showo.files import atomic_write_text
from showo.launch import Launch, command_with
from showo.train.checkpoint import checkpoints
from showo.train.config import to_yaml
from showo.train.restart import JOB_NAME, is_restart, sign_for_restarts
from tests.ports import free_port
from tests.train import faults
from tests.train.conftest import small_training, train
from tests.train.soak import children, losses, steps_done
from tests.train.test_soak import SMALL
from tests.train.torchrun import environment, torchrun

PLANTED = ["kill:0:1", "hang:1:3", "fail:1:5", "stop:1:7"]


@dataclass
class Job:
    """A job with one fault after the other. starts: what was said in each of its starts."""

    run: Path
    starts: list[str]
    code: int


@pytest.fixture(scope="module")
def job(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("faults")
    config, run = folder / "small.yaml", folder / "run"
    atomic_write_text(config, to_yaml(small_training(folders, *SMALL, "steps=10", "step_timeout=2")))
    arguments = ["--max-restarts", "3", faults.__file__, ",".join(PLANTED), "--config", str(config)]
    done = torchrun(2, *arguments, "--run-folder", str(run))
    starts = re.split(r"(?<=\n)(?=.*torchrun has started this job again)", done.stderr)
    return Job(run, starts, done.returncode)


@pytest.mark.slow
def test_each_failure_is_followed_by_a_start_that_goes_on(job: Job) -> None:
    assert [len(job.starts), job.code] == [4, 0], job.starts
    assert "goes on from the beginning, as there is no checkpoint yet" in job.starts[1]
    assert all("goes on from its newest whole checkpoint" in start for start in job.starts[2:])


@pytest.mark.slow
def test_the_lock_of_a_rank_that_was_killed_is_taken_over(job: Job) -> None:
    assert re.search(r"run: the lock of process \d+ on .*, which has ended, is taken over", job.starts[0])


@pytest.mark.slow
def test_a_hang_shows_the_stacks_of_every_rank(job: Job) -> None:
    said = job.starts[1]
    for rank in (0, 1):
        assert f"showo: rank {rank}: step 4 has not ended within 2 seconds; this rank ends" in said
    assert re.search(r"showo: rank 1:   File .*faults\.py\", line \d+, in hang\n", said)
    assert re.search(r"showo: rank 0:   File .*ranks\.py\", line \d+, in summed\n", said) or "in backward" in said


@pytest.mark.slow
def test_an_exception_carries_the_number_of_its_rank_once(job: Job) -> None:
    said = job.starts[2]
    assert said.count("showo: rank 1: Traceback") == 1
    assert said.count("ArithmeticError: a planted bug") == 1
    assert said.count("showo: rank 1: this is a bug in showo") == 1
    assert "showo: rank 0: Traceback" not in said


@pytest.mark.slow
def test_what_one_rank_is_told_all_do_and_the_command_that_is_printed_goes_on(job: Job) -> None:
    assert f"stopped at step 8; saved {checkpoints(job.run)[-1]}" in job.starts[3]
    (command,) = re.findall("showo: this goes on with: (torchrun .*--resume)\n", job.starts[3])
    done = subprocess.run(shlex.split(command), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(job.run)] == list(range(1, 11))


CLUSTER = re.search(
    r"```bash\n(torchrun .*?)```", (Path(__file__).parents[2] / "docs/training.md").read_text(), re.DOTALL
)


@pytest.mark.slow
def test_the_command_for_several_machines_trains_and_goes_on_where_one_has_failed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Word for word, with torchruns of this machine in place of several; one of them loses its rank to a kill -9."""
    assert CLUSTER is not None
    config, run, said = tmp_path / "small.yaml", tmp_path / "run", tmp_path / "said.txt"
    atomic_write_text(config, to_yaml(small_training(folders, *SMALL, "steps=12", "fsdp.shards=1", "parallel=fsdp")))
    variables = environment(
        NODES="2", GPUS="1", HOST=f"localhost:{free_port()}", JOB="a", CONFIG=str(config), RUN=str(run)
    )
    with said.open("w") as output:
        start = partial(subprocess.Popen, ["bash", "-c", f"exec {CLUSTER[1]}"], env=variables, stderr=output)
        machines = [start(), start()]
        while steps_done(run) < 3:
            time.sleep(0.05)
            assert all(machine.poll() is None for machine in machines), said.read_text()
        os.kill(children(machines[1].pid)[0], signal.SIGKILL)
        codes = [machine.wait(300) for machine in machines]
    assert codes == [0, 0], said.read_text()
    assert said.read_text().count("torchrun has started this job again") == 1, said.read_text()
    assert [step for step, _ in losses(run)] == list(range(1, 13))


def under_torchrun(monkeypatch: pytest.MonkeyPatch, job: str = "none", parent: int = os.getppid()) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_RUN_ID", job)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getppid", lambda: parent)


def test_only_a_job_goes_on_with_what_it_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_for_restarts(tmp_path)
    assert not list(tmp_path.iterdir())  # of a process that torchrun has not started
    under_torchrun(monkeypatch)
    assert not is_restart(tmp_path)  # such as one that somebody else has made
    sign_for_restarts(tmp_path)
    assert is_restart(tmp_path)
    under_torchrun(monkeypatch, parent=1)
    assert not is_restart(tmp_path)
    under_torchrun(monkeypatch, job="a")
    assert not is_restart(tmp_path)
    sign_for_restarts(tmp_path)
    under_torchrun(monkeypatch, job="a", parent=1)  # on another machine, say
    assert is_restart(tmp_path)
    under_torchrun(monkeypatch, job="b", parent=1)
    assert not is_restart(tmp_path)
    for damaged in ("[]", "null", '{"id": 3}', "{", ""):
        (tmp_path / JOB_NAME).write_text(damaged)
        assert not is_restart(tmp_path)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/x/python", "/x/bin/showo", "train", "--run", "a b"], "showo train --run 'a b' --resume"),
        (["/x/python", "-m", "showo.train", "--resume"], "/x/python -m showo.train --resume"),
    ],
)
def test_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch, words: list[str], shown: str) -> None:
    monkeypatch.setattr(sys, "orig_argv", words)
    assert command_with("--resume") == shown


def test_the_command_of_ranks_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    under_torchrun(monkeypatch)
    words = ["/x/python", "/x/torchrun", "--nproc-per-node", "2", "-m", "showo.train"]
    monkeypatch.setattr(launch, "_words_of", lambda process: words if process == os.getppid() else [])
    assert command_with("--resume") == "torchrun --nproc-per-node 2 -m showo.train --resume"
    assert Launch.of_this_process() == Launch(0, 2, 0, "", by_torchrun=True)


LEAVING = """
import faulthandler, os, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from showo.train.ranks import leave_group
faulthandler.dump_traceback_later(60, exit=True)
sys.setswitchinterval(1.0)  # a thread that waits for Python's lock waits long
rank, store = int(os.environ["RANK"]), dist.TCPStore("localhost", int(sys.argv[1]), 2, os.environ["RANK"] == "0")
for time in range(10):
    dist.init_process_group("gloo", store=dist.PrefixStore(str(time), store), rank=rank, world_size=2)
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    model(torch.randn(2, 4)).sum().backward()
    dist.all_reduce(torch.ones(4))
    leave_group()
    del model
"""


@pytest.mark.slow
def test_ranks_leave_their_group_without_waiting_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    done = torchrun(2, str(tmp_path / "leaving.py"), str(free_port()))
    assert done.returncode == 0, done.stderr


def test_a_clock_that_jumps_changes_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days back and forth, from call to call: what is decided by time goes by a clock that nobody sets."""
    now, jumps = time.time(), itertools.cycle((3e6, -3e6, 0.0))
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    assert train(small_training(folders, *SMALL, "parallel=none", "max_seconds=1000"), tmp_path).step == 6


WATCHED = """
import ctypes, sys, time
from showo.train import watchdog
watchdog._GRACE = 1
with watchdog.Watchdog(5) as dog:
    for step in range(3):
        dog.expect(f"step {step}", 3)
        time.sleep(1.5)
    dog.expect("the end", 1)
    getattr(ctypes, sys.argv[1])(None).sleep(100)
"""


@pytest.mark.parametrize(
    ("library", "said"), [("CDLL", "showo: rank 5: the end has not"), ("PyDLL", "Timeout (0:00:02)")]
)
def test_a_watchdog_barks_when_the_time_is_up_also_where_python_cannot_run(library: str, said: str) -> None:
    """PyDLL keeps Python's lock meanwhile. Steps that end in time end nothing, however many they are."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, library], env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert 'File "<string>", line 10' in done.stderr
