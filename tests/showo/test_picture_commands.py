"""showo inpaint, extend and vary: the pictures of the pipeline, JSON, mistakes in one line, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from showo.engine.pipeline import ShowoPipeline
from showo.model.transformer import Showo
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
    options = {"steps": 2, "seed": 4, "negative_prompt": "b"}
    common = ["-m", checkpoint, "--steps", 2, "--seed", 4, "--negative", "b", "--json"]

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
    ],
)
def test_mistakes(
    here: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    Path("text.png").write_text("no picture")
    Image.new("RGBA", (40, 30)).save("clear.png")
    Image.new("L", (8, 8), 255).save("small.png")
    monkeypatch.setattr(Showo, "forward", None)
    before = sorted(here.iterdir())
    assert message in failure(capsys, command, *arguments, "-m", checkpoint)
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
