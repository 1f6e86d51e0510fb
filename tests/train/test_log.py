"""The log of a run that was resumed: every step once, whoever reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from showo.errors import OutputError
from showo.train.json_log import forget_lines_after
from showo.train.log import RunLog, forget_after


def write(run: Path, steps: range, start: int) -> None:
    """One process's part of the log. Its file gets a name that sorts after the earlier ones also within one second."""
    earlier = set(run.glob("logs/*"))
    with RunLog(run, start) as log:
        for step in steps:
            log.scalars("train", {"loss": step / 8}, step)
            if step % 3 == 0:
                log.picture("sheet", Image.new("RGB", (4, 4)), step)
    (file,) = set(run.glob("logs/*")) - earlier
    file.rename(file.with_name(f"events.out.tfevents.{len(earlier):010}"))


def through_accumulator(run: Path, purge: bool = True) -> tuple[list[int], list[int]]:
    """Steps of the scalars and of the pictures, as TensorBoard shows them."""
    found = EventAccumulator(str(run / "logs"), size_guidance={"images": 0}, purge_orphaned_data=purge).Reload()
    scalars, pictures = found.Scalars("train/loss"), found.Images("sheet")
    assert all(scalar.value == scalar.step / 8 for scalar in scalars)
    return [scalar.step for scalar in scalars], [picture.step for picture in pictures]


def through_the_files(run: Path) -> list[int]:
    """Steps of the scalars, from a reader that knows no purging."""
    files = sorted((run / "logs").glob("events.*"))
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return sorted(event.step for event in events if any(v.tag == "train/loss" for v in event.summary.value))


def through_the_lines(run: Path) -> list[int]:
    """Steps of the lines for programs."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(line["train/loss"] == line["step"] / 8 for line in found)
    return [line["step"] for line in found]


@pytest.mark.parametrize("read", [through_accumulator, lambda run: through_accumulator(run, purge=False)])
def test_a_resumed_log_holds_every_step_once(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    write(tmp_path, range(1, 9), start=0)
    write(tmp_path, range(5, 13), start=4)  # from a checkpoint of step 4
    assert read(tmp_path) == (list(range(1, 13)), [3, 6, 9, 12])
    assert through_the_files(tmp_path) == list(range(1, 13))
    assert through_the_lines(tmp_path) == list(range(1, 13))


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), start=0)
    write(tmp_path, range(1, 7), start=0)
    assert through_the_files(tmp_path) == list(range(1, 7))


@pytest.mark.parametrize("damage", ["cut", "noise", "length"])
def test_damage_of_an_event_file_is_no_obstacle(tmp_path: Path, damage: str) -> None:
    write(tmp_path, range(1, 6), start=0)
    (file,) = (tmp_path / "logs").glob("events.*")
    whole = file.read_bytes()
    tails = {"cut": whole[:-7], "noise": whole[:-40] + b"\x7f" * 40, "length": whole + b"\xff" * 12}
    file.write_bytes(tails[damage])
    forget_after(tmp_path / "logs", 9)
    assert file.read_bytes() == tails[damage]
    forget_after(tmp_path / "logs", 2)
    assert through_the_files(tmp_path) == [1, 2]


def test_a_line_that_is_not_whole_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6), start=0)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    write(tmp_path, range(5, 7), start=4)
    assert through_the_lines(tmp_path) == [1, 2, 3, 4, 5, 6]
    path.write_text("no JSON\n[1]\n" + path.read_text())
    forget_lines_after(path, 2)
    assert [line[:9] for line in path.read_text().splitlines()] == ["no JSON", "[1]", '{"step": ', '{"step": ']


def test_a_line_is_there_as_soon_as_its_step_is_done(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2):
            log.scalars("train", {"loss": step / 8}, step)
            assert through_the_lines(tmp_path) == list(range(1, step + 1))


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.scalars("train", {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5}, 1)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["train/loss"], line["train/grad_norm"], line["train/lr"]) == (None, None, 0.5)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="the log cannot be written"):
        RunLog(tmp_path, 0)
