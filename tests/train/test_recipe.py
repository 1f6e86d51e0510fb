"""`make recipe`: which commands are left to do. That the stages themselves fit is tested in test_sequence.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from showo import recipe
from showo.train.config import load_config


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finish(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)


def carry_out(command: list[str]) -> None:
    """What a command leaves behind, as far as the recipe looks at it."""
    if "--run" in command:
        kind = next(t.kind for t in recipe.TRAININGS if t.config == command[command.index("--config") + 1])
        config = load_config(kind, command[command.index("--config") + 1])
        finish(Path(command[command.index("--run") + 1]), config.steps)
    elif "showo.data.make_text_tokenizer" in command:
        recipe.TEXT_TOKENIZER.mkdir(parents=True)
        (recipe.TEXT_TOKENIZER / "tokenizer.json").touch()


def names(overrides: tuple[str, ...] = (), stop: str = "") -> list[str]:
    """The commands of a recipe that is carried out until `stop`: configurations, or what else they do."""
    found = []
    for command in recipe.commands(500, 800, "cpu", overrides):
        name = command[command.index("--config") + 1] if "--config" in command else command[-1]
        found.append(name + " again" * ("--resume" in command))
        if name == stop:
            break
        carry_out(command)
    return found


def test_every_step_once_in_an_order_in_which_each_finds_what_it_reads() -> None:
    done: set[str] = set()
    for command in recipe.commands(500, 800, "cpu", ()):
        if "--config" in command:
            training = next(t for t in recipe.TRAININGS if t.config == command[command.index("--config") + 1])
            config: Any = load_config(training.kind, training.config)
            reads = [config.init_from] if getattr(config, "init_from", "") else []
            if training.command == "train":
                reads += [config.image_tokenizer, config.text_tokenizer]
                reads += [config.vision_tower] if config.vision_tower else []
            assert {*reads} <= done
            done.add(command[command.index("--run") + 1])
        elif "make_text_tokenizer" in command[1]:
            done.add(command[2])
        carry_out(command)
    assert {str(recipe.RUNS / t.run) for t in recipe.TRAININGS} < done
    assert command[2:4] == ["evaluate", "world"]
    assert "--check" in command


def test_what_is_finished_is_left_alone_and_what_had_begun_goes_on() -> None:
    every = names(stop="tiny-stage2")
    assert every[-1] == "tiny-stage2"
    finish(recipe.RUNS / "tiny-stage2", 500)
    assert names(stop="tiny-stage2") == [every[0], "tiny-stage2 again"]
    rest = names()
    assert rest[:3] == [every[0], "tiny-stage2 again", "tiny-stage3"]
    assert len(names()) == 2  # the world, which says that it is there, and the evaluation


def test_overrides_go_to_every_training_and_decide_what_is_finished() -> None:
    for training in recipe.TRAININGS:
        finish(recipe.RUNS / training.run, 3)
    recipe.TEXT_TOKENIZER.mkdir()
    (recipe.TEXT_TOKENIZER / "tokenizer.json").touch()
    assert len(list(recipe.commands(500, 800, "cpu", ["steps=3"]))) == 2
    given = [command[-2:] for command in recipe.commands(500, 800, "cpu", ["steps=4"])][1:-1]
    assert given == [["device=cpu", "steps=4"]] * len(recipe.TRAININGS)


def test_a_training_that_was_asked_to_stop_ends_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 0))
    with pytest.raises(SystemExit) as end:
        recipe.main([])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("$ python -m showo.cli train-tokenizer ")


def test_an_override_may_be_for_some_configurations_alone() -> None:
    given = ["tiny-mixed:steps=3", "tiny-image*:batch=4", "t2i.data=[{layout: webdataset, files: [a.tar]}]"]
    taken = {t.config: t.arguments(given) for t in recipe.TRAININGS}
    assert [name for name, arguments in taken.items() if "steps=3" in (arguments or [])] == ["tiny-mixed"]
    assert sum("batch=4" in (arguments or []) for arguments in taken.values()) == 3
    assert all(given[2] in (arguments or []) for arguments in taken.values())


def test_a_command_that_fails_ends_the_recipe_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def fail(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit) as end:
        recipe.main(["--scenes", "500"])
    assert end.value.code == 2
    assert len(ran) == 1
    assert "goes on with this command" in capsys.readouterr().err
