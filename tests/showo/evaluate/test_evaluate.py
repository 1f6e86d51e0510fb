"""The evaluation with a pipeline that draws and says the truth, or one wrong thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from showo.data.world.objects import COLOURS, EMOJI, SHAPES, Object
from showo.data.world.scene import Demand, Scene, Wanted
from showo.data.world.world import World
from showo.engine.pipeline import ShowoPipeline
from showo.errors import UserError
from showo.evaluate.world.case import groups, overall, share_right
from showo.evaluate.world.ceiling import reconstruct_scenes
from showo.evaluate.world.drawing import find_fault
from showo.evaluate.world.evaluate import evaluate_world
from showo.evaluate.world.plan import check_sequences, plan
from showo.evaluate.world.report import Report
from showo.evaluate.world.settings import Settings
from showo.evaluate.world.stepping import sequences
from tests.showo.evaluate.conftest import write_prompts
from tests.showo.evaluate.truth import Keeper, Truth

SETTINGS = Settings(count=40, batch=7)


def judge(pipe: ShowoPipeline, folder: Path, settings: Settings = SETTINGS) -> Report:
    return evaluate_world(pipe, folder, settings, "truth", Console(quiet=True))


def wrong(report: Report) -> set[tuple[str, str, str | None]]:
    """(part, group, fault) of everything that is not right."""
    return {
        (part, case.group, case.fault)
        for part, columns in report.cases.items()
        for cases in columns.values()
        for case in cases
        if not case.right
    }


def test_the_truth_is_right_in_every_row(small_pipe: ShowoPipeline, world: World, world_folder: Path) -> None:
    report = judge(Truth(small_pipe, world, world_folder), world_folder)
    assert wrong(report) == set()
    assert report.missed() == []
    assert {part: set(columns) for part, columns in report.cases.items()} == {
        "text to image": {"seen", "held-out"},
        "questions": {"seen", "held-out"},
        "descriptions": {"seen", "held-out"},
        "tokenizer": {"seen", "held-out"},
        "steps": {"seen"},
    }
    assert {len(cases) for columns in report.cases.values() for cases in columns.values()} == {SETTINGS.count}
    drawn = report.cases["text to image"]
    assert set(groups(drawn["seen"])) == {
        "single",
        "two",
        "counting",
        "colours",
        "position",
        "binding",
        "place",
        "full",
    }
    assert set(groups(drawn["held-out"])) == set(groups(drawn["seen"])) - {"single"}


def test_emoji_among_the_objects_are_judged_too(small_pipe: ShowoPipeline, tmp_path: Path) -> None:
    world = World(seed=4, scenes=100, emoji=0.4)
    folder = write_prompts(world, tmp_path)
    report = judge(Truth(small_pipe, world, folder), folder)
    assert wrong(report) == set()
    said = {part: " ".join(case.asked + case.got for case in columns["seen"]) for part, columns in report.cases.items()}
    assert all(any(name in text for name in EMOJI) for text in said.values())
    emoji = Scene((Object("bell", None, 12, 12),))
    assert find_fault(Demand("single", (Wanted("bell"),)), emoji) is None
    assert find_fault(Demand("single", (Wanted("triangle"),)), emoji) == "shape"


def first_changed(scene: Scene, **changes: object) -> Scene:
    first, *rest = scene.objects
    return Scene((replace(first, **changes), *rest))  # type: ignore[arg-type]


def recoloured(scene: Scene) -> Scene:
    return first_changed(scene, colour=next(colour for colour in COLOURS if colour != scene.objects[0].colour))


def reshaped(scene: Scene) -> Scene:
    return first_changed(scene, shape=next(shape for shape in SHAPES if shape not in scene.counts))


def moved(scene: Scene) -> Scene:
    """The first object in another third, far from where it was."""
    first = scene.objects[0]
    return first_changed(scene, x=52 if first.x < 32 else 12, y=52 if first.y < 32 else 12)


def mirrored(scene: Scene) -> Scene:
    """Turned by half a turn around the middle."""
    return Scene(tuple(replace(thing, x=64 - thing.x, y=64 - thing.y) for thing in scene.objects))


def more(scene: Scene) -> Scene:
    first = scene.objects[0]
    return Scene((*scene.objects, Object("heart", "pink", 52 if first.x < 32 else 12, first.y)))


# What goes wrong in a category, and what the fault is called.
CHANGES = {
    "single": (lambda scene: Scene(()), "number"),
    "colours": (more, "number"),
    "two": (reshaped, "shape"),
    "binding": (recoloured, "colour"),
    "place": (moved, "place"),
    "position": (mirrored, "relation"),
}


def test_what_is_wrong_counts_in_its_own_row_under_its_own_name(
    small_pipe: ShowoPipeline, world: World, world_folder: Path
) -> None:
    def unchanged(scene: Scene) -> Scene:
        return scene

    truth = Truth(
        small_pipe,
        world,
        world_folder,
        draw=lambda demand, scene: CHANGES.get(demand.category, (unchanged, ""))[0](scene),
        answer=lambda kind, answer: {"yes": "no", "no": "yes"}.get(answer, answer),
        describe=lambda scene: Scene(scene.objects[1:]) if len(scene.objects) == 3 else scene,
        step=lambda step: recoloured(step.scene) if step.demand.category == "remove" else step.scene,
    )
    report = judge(truth, world_folder)
    expected = {("text to image", category, fault) for category, (_, fault) in CHANGES.items()}
    expected |= {("questions", "yes-no", "not yes"), ("questions", "yes-no", "not no")}
    expected |= {("descriptions", "3 objects", "number"), ("steps", "remove", "colour")}
    assert wrong(report) == expected
    for part, column, right in [
        ("text to image", "seen", 2 / 8),
        ("text to image", "held-out", 2 / 7),
        ("questions", "seen", 4 / 5),
        ("descriptions", "held-out", 1 - 1 / len(groups(report.cases["descriptions"]["held-out"]))),
        ("steps", "seen", 3 / 4),
    ]:
        assert overall(report.cases[part][column]) == pytest.approx(right), (part, column)
    assert {line.split(":")[0] for line in report.missed()} == {
        "text to image, seen",
        "text to image, held-out",
        "questions, seen",
    }


def test_the_tokenizer_is_judged_alone(small_pipe: ShowoPipeline) -> None:
    scenes = [
        Scene((Object("star", "red", 12, 12), Object(shape, "blue", 40, 48))) for shape in SHAPES if shape != "star"
    ]

    def faults(change: Callable[[Tensor], Tensor]) -> set[str | None]:
        keeper = Keeper(small_pipe.image_tokenizer, change)
        return {case.fault for case in reconstruct_scenes(keeper, scenes, 3, lambda done: None)}

    assert faults(lambda images: images) == {None}
    assert faults(lambda images: images.roll(4, dims=3)) == {"place"}
    assert faults(lambda images: images.flip(1)) == {"colour"}
    assert faults(torch.ones_like) == {"number"}
    assert share_right(reconstruct_scenes(Keeper(small_pipe.image_tokenizer), scenes, 64, lambda done: None)) == 1


def test_garbage_is_a_fault_of_its_own() -> None:
    assert find_fault(Demand("single", (Wanted("star"),)), None) == "garbage"


def test_a_report_says_all_of_it(small_pipe: ShowoPipeline, world: World, world_folder: Path) -> None:
    report = judge(Truth(small_pipe, world, world_folder), world_folder)
    written = json.loads(json.dumps(report.to_json()))
    assert written["settings"] == {
        "steps": 18,
        "guidance": 1.75,
        "step_guidance": 0.0,
        "seed": 0,
        "count": 40,
        "batch": 7,
    }
    seen = written["scores"]["text to image"]["seen"]
    assert seen["overall"] == 1
    assert seen["groups"]["single"] == {"cases": 5, "right": 5}
    (case,) = written["cases"]["text to image"]["seen"][:1]
    assert set(case) == {"group", "asked", "got", "fault"}


@pytest.mark.parametrize("options", [{"steps": 0}, {"guidance": -1.0}, {"step_guidance": -1.0}])
def test_options_are_checked_before_any_work(
    options: dict[str, float], small_pipe: ShowoPipeline, world_folder: Path
) -> None:
    with pytest.raises(UserError, match="must be"):
        plan(small_pipe, world_folder, replace(SETTINGS, **options))  # type: ignore[arg-type]


def test_a_sequence_needs_positions(small_pipe: ShowoPipeline, world: World) -> None:
    told = sequences(world, 3)
    check_sequences(small_pipe, told)
    tight = ShowoPipeline(small_pipe.model, small_pipe.image_tokenizer, small_pipe.text_tokenizer)
    tight.prompting.max_positions = 250
    with pytest.raises(UserError, match="the model has 250"):
        check_sequences(tight, told)
