"""What a run says of its steps: figures fetched together, means between two lines of the log, skipped steps, rates."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from showo.data.faults import Drawn
from showo.data.micro_batch import RowBatch
from showo.data.tally import Tally
from showo.errors import NotFiniteError
from showo.train import loop as loop_module
from showo.train.checkpoint import checkpoints
from showo.train.facts import Facts
from showo.train.figures import StepFigures, mean_figures
from showo.train.log import RunLog
from showo.train.meter import Meter
from showo.train.optimizer import learning_rate
from showo.train.ranks import Ranks
from showo.train.showo import showo_loop
from tests.train.conftest import small_training, train

Folders = dict[str, Path]


def figures(loss: float, **more: float) -> dict[str, torch.Tensor]:
    values = {"loss": loss, "grad_norm": 1.0, **more}
    return {"finite": torch.tensor(math.isfinite(loss)), **{name: torch.tensor(v) for name, v in values.items()}}


def test_figures_of_many_steps_come_together_and_once() -> None:
    steps = StepFigures(limit=0)
    steps.add(1, figures(2.0, t2i=3.0))
    steps.add(2, figures(1.0))
    taken = steps.take()
    assert [(each["loss"], each.get("t2i")) for each in taken] == [(2.0, 3.0), (1.0, None)]
    assert steps.take() == []


def test_means_leave_out_skipped_steps() -> None:
    steps = StepFigures(limit=5)
    for number, loss in enumerate([1.0, math.nan, 5.0], start=1):
        steps.add(number, figures(loss, t2i=2 * loss))
    taken = steps.take()
    assert mean_figures(taken) == {"loss": 3.0, "grad_norm": 1.0, "t2i": 6.0}
    assert steps.skipped == 1
    assert math.isnan(mean_figures(taken[1:2])["loss"])
    without = {name: value for name, value in taken[0].items() if name != "t2i"}
    assert mean_figures([without, taken[2]])["t2i"] == 10.0  # of the steps that have it


def test_facts_of_micro_batches_are_added_up() -> None:
    first, second, third = (Drawn(None, 0, index, ()) for index in range(3))
    a = Facts({"t2i": 2, "lm": 1}, Tally(images=1, tokens=5), {"t2i": [first]})
    b = Facts({"t2i": 3}, Tally(images=2, masked=4), {"t2i": [second], "lm": [third]})
    both = Facts.of([a, b])
    assert both.counts == {"t2i": 5, "lm": 1}
    assert both.tally == Tally(images=3, tokens=5, masked=4)
    assert both.drawn == {"t2i": [first, second], "lm": [third]}


@pytest.mark.parametrize(("losses", "ends"), [("..xx.xx.xx", None), ("..xxx....", 5), ("xxx", 3), (".xx|x", 4)])
def test_more_skipped_steps_in_a_row_than_the_limit_end_a_run(losses: str, ends: int | None) -> None:
    """A bar is where somebody looks in between."""
    steps = StepFigures(limit=2)

    def go() -> None:
        number = 0
        for letter in losses:
            if letter == "|":
                steps.take()
                continue
            number += 1
            steps.add(number, figures(math.nan if letter == "x" else 1.0))
        steps.take()

    if ends is None:
        go()
        assert steps.skipped == 6
    else:
        with pytest.raises(NotFiniteError, match=rf"step {ends}: loss nan, gradient norm 1\.0; 3 steps in a row"):
            go()


def test_a_meter_counts_the_time_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = [100.0], [7.0]
    monkeypatch.setattr("showo.train.meter.time.monotonic", lambda: clock[0])
    meter = Meter(lambda: waited[0], torch.device("cpu"))
    for seconds in (1, 2):
        meter.add(Tally(images=10, tokens=60, padding=20, codes=40, masked=10))
        with meter.clock.part("forward"):
            clock[0] += seconds
        with meter.clock.host_part("communication"):
            clock[0] += 0.5
        clock[0] += 3.5 - seconds
    waited[0] += 2
    with meter.paused():
        clock[0] += 1000
    assert meter.take() == {
        "images_per_second": 2.5,
        "tokens_per_second": 15.0,
        "padding_share": 0.25,
        "masking_rate": 0.25,
        "waiting_for_data": 0.25,
        "seconds_step": 4.0,
        "seconds_forward": 1.5,
        "seconds_communication": 0.5,
    }
    clock[0] += 2
    meter.add(Tally(images=1))
    assert meter.take() == {"images_per_second": 0.5, "waiting_for_data": 0.0, "seconds_step": 2.0}


def logged(run: Path) -> dict[str, dict[int, float]]:
    """Figures of the log by name and step."""
    found = EventAccumulator(str(run / "logs")).Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def lines(run: Path) -> dict[str, dict[int, float]]:
    """The same, as the lines for programs have them."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        step, _ = line.pop("step"), line.pop("time")
        for name, value in line.items():
            found.setdefault(name, {})[step] = value
    return found


def flat(figures: dict[str, dict[int, float]]) -> dict[tuple[str, int], float]:
    return {(name, step): value for name, values in figures.items() for step, value in values.items()}


PARTS = ("data", "forward", "backward", "optimizer", "communication")


def test_the_log_holds_means_between_its_lines(folders: Folders, tmp_path: Path) -> None:
    config = small_training(folders, "steps=5", "log_every=2", "checkpoint_every=1", "optimizer.max_grad_norm=1e-3")
    loop = train(config, tmp_path)
    log, batches = logged(tmp_path), list(loop.data.between(0, 5))
    for before, step in ((0, 2), (2, 4), (4, 5)):  # the last step too has a line
        assert log["train/loss"][step] == pytest.approx(sum(loop.history[before:step]) / (step - before), rel=1e-5)
        tally = sum((batch.tally for batch in batches[before:step]), Tally())
        assert log["train/lr"][step] == pytest.approx(learning_rate(config.optimizer, step - 1, 5))  # of that step
        assert log["train/masking_rate"][step] == pytest.approx(tally.masked / tally.codes)
        assert log["train/padding_share"][step] == pytest.approx(tally.padding / (tally.tokens + tally.padding))
        weighed = sum(stream.weight * log[f"train/{name}"][step] for name, stream in config.streams.items())
        assert weighed == pytest.approx(log["train/loss"][step], rel=1e-5)
        assert log["train/grad_norm"][step] > 1e-2  # before clipping
        parts = [log[f"train/seconds_{part}"][step] for part in PARTS]
        assert min(parts) > 0
        assert sum(parts) <= log["train/seconds_step"][step]
        assert log["save/seconds"][step] > 0
    assert log["save/seconds"].keys() == {1, 2, 3, 4, 5}
    rest = {"images_per_second", "tokens_per_second", "waiting_for_data", "memory_gib"}
    assert {f"train/{name}" for name in rest} < set(log)
    assert flat(lines(tmp_path)) == pytest.approx(flat(log))
    assert "train/skipped_steps" not in log
    assert log["train/tokens_per_second"][5] > 0
    assert 0.01 < log["train/memory_gib"][5] < 100


def test_rates_are_those_of_all_ranks_in_the_time_of_the_steps_alone(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of two ranks that do the same. Validation and saving take time that is no step's."""
    monkeypatch.setattr(Ranks, "all_of", lambda ranks, value: [value] * (2 if isinstance(value, Facts) else 1))
    clock = [0.0]
    monkeypatch.setattr("showo.train.meter.time.monotonic", lambda: clock[0])
    config = small_training(folders, "steps=2", "log_every=2", "validate_every=1", "checkpoint_every=1", "workers=0")
    loop = showo_loop(config, tmp_path)
    plain, start = loop.loss, loop.saver.start
    counted: list[Mapping[str, float]] = []

    def loss(rows: RowBatch, counts: Mapping[str, float], generator: torch.Generator) -> Any:
        counted.append({name: counts[name] / count for name, count in rows.counts.items()})
        return later(3, plain(rows, counts, generator))

    def later(seconds: float, result: Any) -> Any:
        clock[0] += seconds
        return result

    loop.loss = loss
    loop.validate = lambda model, step: later(100, ({}, {}))
    monkeypatch.setattr(loop.saver, "start", lambda step: later(1000, start(step)))
    loop.run()
    assert counted == [{"t2i": 2, "lm": 2, "mmu": 2}] * 2
    log = logged(tmp_path)
    assert log["train/seconds_step"] == {2: 3.0}
    assert log["train/images_per_second"] == {2: pytest.approx(2 * 7 / 3)}


def test_a_run_goes_on_after_steps_that_are_not_finite(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of six: the run is the one in which these steps had changed nothing."""
    config = small_training(folders, "steps=6", "log_every=6", "max_skipped_steps=2", "ema_decay=0.5")
    loop = showo_loop(config, tmp_path)
    weights: list[torch.Tensor] = []
    averages: list[torch.Tensor] = []  # before each step
    step = loop_module.train_step

    def noted(*arguments: Any) -> Mapping[str, torch.Tensor]:
        averages.append(loop.average.tensors["showo.lm_head.weight"].clone())  # type: ignore[union-attr]
        found = step(*arguments)
        weights.append(loop.model.showo.lm_head.weight.detach().clone())
        return found

    plain = loop.loss

    def spoiled(rows: RowBatch, counts: Mapping[str, float], generator: torch.Generator) -> Any:
        value, means = plain(rows, counts, generator)
        return (value * float("nan") if loop.step in (2, 3) else value), means

    monkeypatch.setattr(loop_module, "train_step", noted)
    loop.loss = spoiled
    tmp_path.mkdir(exist_ok=True)
    loop.run()
    assert [math.isnan(loss) for loss in loop.history] == [False, False, True, True, False, False]
    assert [torch.equal(a, b) for a, b in pairwise(weights)] == [False, True, True, False, False]
    assert [torch.equal(a, b) for a, b in pairwise(averages)] == [True, False, True, True, False]  # rate 0 in step 0
    assert logged(tmp_path)["train/skipped_steps"] == {6: 2.0}
    assert math.isfinite(logged(tmp_path)["train/loss"][6])


def test_too_many_skipped_steps_end_a_run_before_it_is_saved(folders: Folders, tmp_path: Path) -> None:
    """Also where nothing is logged before."""
    config = small_training(folders, "log_every=9", "checkpoint_every=2", "max_skipped_steps=1", "workers=0")
    loop = showo_loop(config, tmp_path)
    plain = loop.loss

    def spoiled(*arguments: Any) -> Any:
        value, means = plain(*arguments)
        return value * float("nan"), means

    loop.loss = spoiled
    with pytest.raises(NotFiniteError, match=r"^step 2: loss nan"):
        loop.run()
    assert checkpoints(tmp_path) == []


class FakeWandb(ModuleType):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.opened: list[dict[str, Any]] = []
        self.told: list[tuple[int, list[str]]] = []
        self.ended: list[int] = []

    def init(self, **arguments: Any) -> FakeWandb:
        self.opened.append(arguments)
        return self

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.told.append((step, list(values)))

    def Image(self, picture: Image.Image) -> Image.Image:
        return picture

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_wandb_gets_the_log_of_one_run_however_often_it_goes_on(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = small_training(folders, "wandb=show-o", "steps=2", "log_every=1")
    train(config, tmp_path / "run")
    (opened,) = wandb.opened
    assert (opened["project"], opened["name"], opened["config"]["steps"]) == ("show-o", "run", 2)
    assert [step for step, names in wandb.told if "train/loss" in names] == [1, 2]
    assert {"val/t2i", "generated"} <= {name for _, names in wandb.told for name in names}
    with pytest.raises(ZeroDivisionError), RunLog(tmp_path / "run", 2, "show-o"):
        raise ZeroDivisionError
    assert wandb.opened[1]["id"] == opened["id"]
    assert wandb.opened[1]["resume"] == "allow"
    assert wandb.ended == [0, 1]
