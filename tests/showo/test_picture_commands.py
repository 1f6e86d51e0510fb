"""showo inpaint, extend and vary: the pictures of the pipeline, JSON, mistakes in one line, nothing half-written."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image

from showo.commands import common
from showo.engine.pipeline import ShowoPipeline
from tests.showo.command import failure, run

COMMANDS = {"inpaint": ["a", "--box", "0,0,9,9"], "extend": ["up: a"], "vary": ["a"]}


@pytest.fixture
def here(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_give_what_the_pipeline_gives(
    here: Path, checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, source = ShowoPipeline.from_pretrained(checkpoint), Image.open(picture)
    mask = Image.new("L", source.size)
    mask.paste(200, (10, 10, 20, 20))
    mask.save("mask.png")
    Image.effect_noise((20, 20), 90).save("other.png")
    options = {"steps": 2, "seed": 4, "negative_prompt": "b", "also": [("c = d", 2.5), ("e", -50.0)]}
    common = ["-m", checkpoint, "--steps", 2, "--seed", 4, "--negative", "b", "--json"]
    common += ["--also", "c = d=+2.5", "--also", "e = -5e1"]

    def told(*arguments: object) -> dict[str, object]:
        assert run(*arguments, *common) == 0
        return json.loads(capsys.readouterr().out)

    out = told("inpaint", picture, "a", "--mask", "mask.png", "--blend", 1, "--count", 2)
    assert out == {"pictures": ["out-0.png", "out-1.png"], "prompt": "a", "seeds": [4, 5]}
    drawn = pipe.inpaint(source, "a", mask, blend=1, num_images_per_prompt=2, **options)
    assert [Image.open(name).tobytes() for name in out["pictures"]] == [image.tobytes() for image in drawn]

    out = told("inpaint", picture, "a", "--box", "10,10,20,20", "--blend", 1, "-o", "box.png")
    (drawn,) = pipe.inpaint(source, "a", (10, 10, 20, 20), blend=1, **options)
    assert Image.open("box.png").tobytes() == drawn.tobytes()

    out = told("extend", picture, "right: a", "up:b", "--by", 1, "-o", "wide.png")
    assert out == {
        "picture": "wide.png",
        "directions": ["right", "up"],
        "prompts": ["a", "b"],
        "seed": 4,
        "size": [20, 20],
    }
    (drawn,) = pipe.extend(source, ["a", "b"], ["right", "up"], by=1, **options)
    assert Image.open("wide.png").tobytes() == drawn.tobytes()

    out = told("vary", picture, "a", "--other", "other.png", "--share", 0.3, "-o", "vary.png")
    assert out == {"pictures": ["vary.png"], "prompt": "a", "seeds": [4]}
    (drawn,) = pipe.vary(source, "a", other=Image.open("other.png"), share=0.3, **options)
    assert Image.open("vary.png").tobytes() == drawn.tobytes()


def test_generate_in_json(here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a", "b", "-m", checkpoint, "--steps", 1, "--output-dir", "d", "-o", "s.png", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"pictures": ["d/0.png", "d/1.png"], "sheet": "s.png", "prompts": ["a", "b"], "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("inpaint", ["no.png", "a", "--box", "0,0,1,1"], "no.png: no such picture"),
        ("inpaint", ["picture.png", "a"], "give --mask or --box"),
        ("inpaint", ["picture.png", "a", "--mask", "picture.png", "--box", "0,0,1,1"], "give --mask or --box"),
        ("inpaint", ["picture.png", "a", "--mask", "text.png"], "text.png: not a readable picture"),
        ("inpaint", ["picture.png", "a", "--mask", "clear.png"], "clear.png: has transparent pixels"),
        ("inpaint", ["picture.png", "a", "--mask", "small.png"], "the mask has 8x8 pixels, its picture 40x30"),
        ("inpaint", ["picture.png", "a", "--box", "0,0,41,1"], "box 0,0,41,1: expected 0 <= left < right <= 40"),
        ("inpaint", ["picture.png", "a", "--box", "1,2,3"], "--box must be LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("inpaint", ["text.png", "a", "--box", "0,0,1,1"], "text.png: not a readable picture"),
        ("extend", ["picture.png", "up a"], 'a step must be DIRECTION:PROMPT, such as "right: a blue ring", got'),
        ("extend", ["picture.png", "north: a"], "direction must be one of left, right, up, down, got 'north'"),
        ("extend", ["picture.png", "up: a", "--by", "4"], "by must be 1 to 3 codes"),
        ("extend", ["picture.png", "up: a", "up:" + "x" * 19], "prompt 2 is too long: 19 tokens, at most 18 fit"),
        ("extend", ["picture.png", *["up: a"] * 2047, "-o", "a.webp"], "a picture of 16x16392 pixels, but .webp ends"),
        ("vary", ["picture.png", "a", "--share", "1.5"], "share must be more than 0 and at most 1, got 1.5"),
        ("vary", ["picture.png", "a", "--other", "no.png"], "no.png: no such picture"),
        ("vary", ["picture.png", "a", "-o", "a.txt"], "--output a.txt: the name must end in .png"),
        ("vary", ["picture.png", "a", "--negative", "x" * 19], "--negative is too long: 19 tokens, at most 18 fit"),
        ("vary", ["picture.png", "a", "--size", "4096x4096"], "needs 1048599 positions; this model has 128"),
        ("vary", ["picture.png", "a", "--sampler", "gibbs"], "sampler must be confidence"),
        ("vary", ["picture.png", "a", "--also", "b"], '--also must be TEXT=WEIGHT, such as "a blue ring=0.5", got'),
        ("vary", ["picture.png", "a", "--also", " =1"], "--also must be TEXT=WEIGHT"),
        ("vary", ["picture.png", "a", "--also", "b=nan"], "--also must be TEXT=WEIGHT"),
        ("vary", ["picture.png", "a", "--also", "b=1e31"], "also: a weight must be a number from -1e30 to 1e30, got"),
        ("vary", ["picture.png", "a", *["--also", "b=1"] * 8], "also: a picture has 9 prompts, at most 8 can be"),
        ("vary", ["picture.png", "a", "--also", "b=1", "--also", "x" * 19 + "=1"], "--also 2 is too long: 19 tokens"),
        *((name, ["picture.png", *told, "--guidance", "-1"], "guidance must be 0") for name, told in COMMANDS.items()),
        *((name, ["picture.png", *told], "/model.safetensors") for name, told in COMMANDS.items()),
    ],
)
def test_mistakes_are_told_before_weights_are_read(
    here: Path,
    unreadable: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    Path("text.png").write_text("no picture")
    Image.new("RGBA", (40, 30)).save("clear.png")
    Image.new("L", (8, 8), 255).save("small.png")
    before = sorted(here.iterdir())
    assert message in failure(capsys, command, *arguments, "-m", unreadable)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sampler", "sampler must be"),
        ("--schedule", "schedule must be"),
        ("--guidance-schedule", "guidance schedule must be"),
    ],
)
@pytest.mark.parametrize("command", ["inpaint", "extend", "vary"])
def test_names_are_checked_before_a_model_is_looked_for(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, option: str, message: str
) -> None:
    told = {"inpaint": ["a", "--box", "0,0,8,8"], "extend": ["right: a"], "vary": ["a"]}[command]
    assert message in failure(capsys, command, "picture.png", *told, option, "none", "-m", here / "missing")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_leaves_nothing(
    here: Path, checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert run(command, picture, *COMMANDS[command], "-m", checkpoint, "--steps", 1) == 130
    assert [path.name for path in here.iterdir()] == ["picture.png"]


def test_options_that_commands_share(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a group of options stands, each has its name, its default and its help, in the group's order."""

    @common.grouped
    def command(*, first: int = 1, drawing: common.DrawingOptions, last: int = 2, models: common.ModelOptions) -> None:
        given.extend([first, drawing, last, models])

    given: list[object] = []
    groups = [common.DrawingOptions, common.ModelOptions]
    drawing, models = ([field.name for field in dataclasses.fields(group)] for group in groups)
    assert list(inspect.signature(command).parameters) == ["first", *drawing, "last", *models]
    hints = get_type_hints(common.DrawingOptions, include_extras=True)
    assert {name: inspect.signature(command).parameters[name].annotation for name in drawing} == hints
    given_by_name = dict.fromkeys(drawing) | dict.fromkeys(models) | {"steps": 7, "device": "cuda", "last": 9}
    command(first=5, **given_by_name)
    expected = [
        group(**{name: given_by_name[name] for name in names}) for group, names in zip(groups, (drawing, models))
    ]
    assert given == [5, expected[0], 9, expected[1]]
    for name in ("generate", "inpaint", "extend", "vary", "story"):
        assert run(name, "--help") == 0
        told = re.findall(r"^\W*(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
        shared = [f"--{option.replace('_', '-')}" for option in [*drawing, *models] if option != "model"]
        assert [option for option in told if option in shared] == shared
