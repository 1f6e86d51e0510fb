"""Checkpoints that are written while the steps go on: what they hold, when they are there, who hears of failures."""

from __future__ import annotations

import random
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from showo.errors import CheckpointError, OutputError
from showo.train import saving
from showo.train.checkpoint import checkpoints, load_checkpoint, prune_checkpoints
from showo.train.config import LoopConfig
from showo.train.ema import WeightAverage
from showo.train.optimizer import make_optimizer
from showo.train.parallel import Parallel
from showo.train.saving import Saver
from tests.train.conftest import damage, same_tensors, saved_tensors


class Training:
    """A model that learns, without data."""

    def __init__(self, run: Path, **config: Any) -> None:
        self.run, self.config = run, LoopConfig(steps=9, ema_decay=0.5, **config)
        self.model = nn.Linear(8, 8)
        self.parallel = Parallel(self.model)
        self.optimizer = make_optimizer(self.model, self.config.optimizer)
        self.average = WeightAverage(self.model, 0.5)
        self.saver = Saver(run, self.parallel, self.optimizer, self.average, self.config, {}, None)

    def step(self) -> None:
        self.model(torch.randn(4, 8)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(torch.tensor(True))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: x.clone() for name, x in saving.tensors_of(self.model, self.optimizer, self.average).items()}

    def load(self, said: list[str] | None = None) -> int | None:
        tell = (said if said is not None else []).append
        return load_checkpoint(self.run, self.parallel, self.optimizer, self.average, self.config, {}, tell)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writers wait for it."""
    go_on = threading.Event()
    write = FileSystemWriter.write_data

    def late(*args: Any, **kwargs: Any) -> Any:
        assert go_on.wait(60)
        return write(*args, **kwargs)

    monkeypatch.setattr(FileSystemWriter, "write_data", late)
    return go_on


def test_a_checkpoint_is_the_state_of_its_step(tmp_path: Path, held: threading.Event) -> None:
    """The steps go on before anything is written, and change all tensors where they lie."""
    training = Training(tmp_path)
    training.step()
    expected = training.tensors()
    assert {name.split(".")[0] for name in expected} == {"weights", "average", "optimizer"}
    path = training.saver.start(1)
    training.step()
    changed = training.tensors()
    assert all(not torch.equal(changed[name], value) for name, value in expected.items())
    assert not path.exists()
    assert not (path.parent / "latest").exists()
    held.set()
    training.saver.wait()
    assert same_tensors(saved_tensors(path), expected)
    assert (path.parent / "latest").read_text() == "step-000001\n"


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    """Whatever was there before: weights, averages, moments, and how many steps the optimizer has done."""
    training = Training(tmp_path)
    for _ in range(3):
        training.step()
    training.saver.start(3)
    training.saver.wait()
    fresh = Training(tmp_path)
    fresh.step()
    assert fresh.load() == 3
    assert same_tensors(fresh.tensors(), training.tensors())
    torch.manual_seed(0)
    training.step()
    torch.manual_seed(0)
    fresh.step()
    assert same_tensors(fresh.tensors(), training.tensors())


def test_one_is_written_at_a_time(tmp_path: Path, held: threading.Event) -> None:
    training = Training(tmp_path)
    first = training.saver.start(1)
    timer = threading.Timer(0.2, held.set)
    timer.start()
    training.saver.start(2)  # waits
    assert held.is_set()
    assert checkpoints(tmp_path)[0] == first
    training.saver.close()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001", "step-000002"]


def test_a_failure_is_heard_of_with_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    training.saver.start(1)
    training.saver.wait()

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FileSystemWriter, "write_data", full)
        training.saver.start(2)
        with pytest.raises(OutputError, match=r"step 2 could not be saved in .*checkpoints: No space left on device"):
            training.saver.start(3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000001"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000001\n"
    training.saver.start(3)  # the disk has room again
    training.saver.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001", "step-000003"]


def test_no_bug_is_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(saving, "write_checksums", wrong)
    training.saver.start(1)
    with pytest.raises(ZeroDivisionError):
        training.saver.wait()
    assert checkpoints(tmp_path) == []


def test_an_error_elsewhere_loses_no_checkpoint(tmp_path: Path, held: threading.Event) -> None:
    training = Training(tmp_path)
    training.saver.start(1)
    timer = threading.Timer(0.1, held.set)
    timer.start()
    training.saver.close()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]


def test_multiples_of_keep_every_stay(tmp_path: Path) -> None:
    training = Training(tmp_path, keep_checkpoints=2, keep_every=4)
    for step in range(1, 10):
        training.saver.start(step)
    training.saver.wait()
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:06d}" for n in (4, 8, 9)]
    prune_checkpoints(tmp_path, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000009"]


def test_any_damage_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    """100 random ones: bits, ends, files that are gone, files of the other checkpoint, and of another place."""
    training, random_ = Training(tmp_path / "run", keep_checkpoints=9), random.Random(torch.seed())
    states = {}
    for step in (1, 2):
        training.step()
        states[step] = training.tensors()
        training.saver.start(step)
        training.saver.wait()
    before, newest = checkpoints(tmp_path / "run")
    whole = shutil.copytree(newest, tmp_path / "whole")
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for number in range(100):
        name, other = random_.sample(names, 2)
        kind, foreign = number % 5, newest / other
        if kind == 3 and (before / name).read_bytes() != (newest / name).read_bytes():
            foreign = before / name
        damage(newest / name, kind, foreign, random_)
        said: list[str] = []
        training.step()
        assert training.load(said) == 1, (name, other, kind)
        assert same_tensors(training.tensors(), states[1])
        assert "set aside as step-000002.damaged, going on from step-000001" in said[0]
        assert (newest.parent / "latest").read_text() == "step-000001\n"
        shutil.rmtree(newest.with_name("step-000002.damaged"))
        shutil.copytree(whole, newest)
    assert training.load() == 2
    assert same_tensors(training.tensors(), states[2])


def test_an_older_layout_says_what_to_do(tmp_path: Path) -> None:
    training = Training(tmp_path)
    old = tmp_path / "checkpoints" / "step-000005"
    old.mkdir(parents=True)
    (old / "training.pt").touch()
    with pytest.raises(CheckpointError, match=r"older version, which cannot be resumed; .* init_from=.*step-000005"):
        training.load()


def test_ranks_that_met_nothing_hear_of_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    monkeypatch.setattr(type(training.parallel.ranks), "all_of", lambda ranks, value: [value, "Read-only file system"])
    done: Future[None] = Future()
    done.set_result(None)
    training.saver._writing = 7, done
    with pytest.raises(OutputError, match=r"step 7 could not be saved in .*: Read-only file system"):
        training.saver.wait()
