"""How a checkpoint reaches the disk: under another name, synced, then renamed; older ones are deleted after that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from showo import files
from showo.errors import OutputError
from showo.files import atomic_path, atomic_write_text, new_folder
from showo.train.checkpoint import checkpoints, prune_checkpoints
from showo.train.config import LoopConfig
from showo.train.parallel import Parallel
from showo.train.saving import Saver
from tests.train.conftest import saved_tensors

Event = tuple[str, Any]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Calls of fsync (file number, size, time of change), of sync, renames (names) and rmtree (name), in order."""
    seen: list[Event] = []
    fsync, rename, replace, rmtree = os.fsync, os.rename, os.replace, shutil.rmtree

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        facts = os.fstat(descriptor)
        seen.append(("fsync", (facts.st_ino, facts.st_size, facts.st_mtime_ns)))

    def renamed(source: Any, target: Any, **rest: Any) -> None:
        rename(source, target, **rest)
        seen.append(("rename", (Path(source).name, Path(target).name)))

    def replaced(source: Any, target: Any, **rest: Any) -> None:
        replace(source, target, **rest)
        seen.append(("rename", (Path(source).name, Path(target).name)))

    def removed(path: Any, *args: Any, **rest: Any) -> None:
        if Path(path).exists():
            seen.append(("remove", Path(path).name))
        rmtree(path, *args, **rest)

    for module, name, spy in (
        (os, "fsync", synced),
        (os, "sync", lambda: seen.append(("sync", None))),
        (os, "rename", renamed),
        (os, "replace", replaced),
        (shutil, "rmtree", removed),
    ):
        monkeypatch.setattr(module, name, spy)
    return seen


def save(run: Path, step: int, attach: Any = None) -> Path:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    saver = Saver(run, Parallel(model), optimizer, None, LoopConfig(steps=9, keep_checkpoints=9), {}, attach)
    path = saver.start(step)
    saver.wait()
    return path


def synced_before(events: list[Event], path: Path, end: int) -> bool:
    """Whether `path`, as it is now, was on the disk before event number `end`."""
    facts = os.stat(path)
    return ("fsync", (facts.st_ino, facts.st_size, facts.st_mtime_ns)) in events[:end]


def attach_nested(folder: Path) -> None:
    (folder / "text").mkdir()
    (folder / "text" / "tokenizer.json").write_text("{}")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: list[Event]) -> None:
    path = save(tmp_path, 3, attach_nested)
    named = events.index(("rename", ("step-000003.tmp", "step-000003")))
    names = ["training.json", "text", "text/tokenizer.json", "state", "state/.metadata", "state/__0_0.distcp", "."]
    written = [path / name for name in (*names, "SHA256SUMS")]
    assert [p.name for p in written if not synced_before(events, p, named)] == []
    linked = next(i for i, (kind, names) in enumerate(events) if kind == "rename" and names[1] == "latest")
    assert named < linked
    folder = os.stat(path.parent).st_ino
    assert any(kind == "fsync" and facts[0] == folder for kind, facts in events[named:linked])
    assert any(kind == "fsync" and facts[0] == folder for kind, facts in events[linked:])


def test_older_checkpoints_are_deleted_last_and_lose_their_names_first(tmp_path: Path, events: list[Event]) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000002"]
    steps = [event for event in events if event[0] != "fsync"]
    assert steps[-4] == ("rename", ("step-000002.tmp", "step-000002"))
    assert steps[-3][1][1] == "latest"
    assert steps[-2:] == [
        ("rename", ("step-000001", "step-000001.old")),
        ("remove", "step-000001.old"),
    ]


def test_a_step_saved_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    before = save(tmp_path, 1, lambda folder: (folder / "extra.json").write_text("{}"))
    weights = saved_tensors(before)["weights.weight"]
    after = save(tmp_path, 1)
    assert after == before
    assert sorted(p.name for p in after.iterdir()) == ["SHA256SUMS", "state", "training.json"]
    assert not torch.equal(saved_tensors(after)["weights.weight"], weights)
    assert sorted(after.parent.iterdir()) == [after.parent / "latest", after]


def test_an_unfinished_checkpoint_has_no_name_and_goes(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)

    def fail(folder: Path) -> None:
        assert (folder / "training.json").is_file()
        assert checkpoints(tmp_path) == [whole]
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"step 2 could not be saved in .*checkpoints: No space left on device$"):
        save(tmp_path, 2, fail)
    assert sorted(whole.parent.iterdir()) == [whole.parent / "latest", whole]


def test_checkpoints_come_by_their_numbers(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-000020", "step-999999"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000020", "step-999999", "step-1000000"]


def test_what_a_killed_process_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    for name in ("step-000006.tmp", "step-000005.tmp", "step-000004.old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "extra.json").touch()
    assert checkpoints(tmp_path) == []
    whole = save(tmp_path, 6)
    assert not (whole / "extra.json").exists()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(whole.parent.iterdir()) == [whole.parent / "latest", whole]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: list[Event]) -> None:
    atomic_write_text(tmp_path / "config.json", "{}")
    (named,) = (i for i, (kind, _) in enumerate(events) if kind == "rename")
    assert synced_before(events, tmp_path / "config.json", named)
    names = os.stat(tmp_path).st_ino
    assert any(kind == "fsync" and facts[0] == names for kind, facts in events[named:])


def test_a_new_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: list[Event]) -> None:
    with new_folder(tmp_path / "world") as folder:
        attach_nested(folder)
    (named,) = (i for i, (kind, _) in enumerate(events) if kind == "rename")
    world = tmp_path / "world"
    written = [world / "text" / "tokenizer.json", world / "text", world]
    assert [p.name for p in written if not synced_before(events, p, named)] == []
    names = os.stat(tmp_path).st_ino
    assert any(kind == "fsync" and facts[0] == names for kind, facts in events[named:])


def test_many_files_are_brought_to_the_disk_at_once(
    tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MANY", 3)
    with new_folder(tmp_path / "world") as folder:
        attach_nested(folder)
        (folder / "more").touch()
    assert [kind for kind, _ in events if kind != "remove"] == ["sync", "rename", "fsync"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_finished_leaves_the_one_before_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "picture.png").write_text("before")

    def write() -> None:
        with atomic_path(tmp_path / "picture.png") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("picture.png", "before")]


def test_a_file_may_be_read_by_whom_a_plainly_written_one_may(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "private") as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode
