"""Stories: every picture is what `generate_codes` draws after the whole row before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from showo.engine.generate import Earlier, generate_codes
from showo.engine.pipeline import ShowoPipeline
from showo.engine.session import Session
from showo.engine.tasks.interleave import draw_stories
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting
from tests.showo.command import failure, run

TEXTS = [[[2], [3], [4, 5]], [[], [6, 7, 8, 9, 10, 11, 12, 13]], [[5]], [[1, 2, 3], [4], []]]
GRID = (4, 4)


@pytest.fixture
def long_model(model: Showo) -> Showo:
    model.config = replace(model.config, max_positions=128)
    return model


def given(model: Showo) -> list[Tensor]:
    """The first pictures of some of the stories."""
    vocab = model.config.vocabulary
    return [torch.randint(vocab.image_offset, vocab.mask_id, (count, 16)) for count in (2, 1, 0, 0)]


def tell(
    model: Showo,
    prompting: Prompting,
    texts: list[list[list[int]]],
    shown: list[Tensor],
    seeds: list[int],
    **options: Any,
) -> list[Tensor]:
    """Picture m of a story is drawn with its story's seed + m."""

    def draw(pictures: Sequence[tuple[int, int]], session: Session) -> Tensor:
        lasts = [texts[story][number] for story, number in pictures]
        seed = [seeds[story] + number for story, number in pictures]
        return generate_codes(model, prompting, lasts, earlier=session, seed=seed, **options)

    return draw_stories(model, prompting, texts, shown, draw)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("options", [{"guidance": 1.75}, {"guidance": 0.0, "sampler": "halton"}])
def test_pictures_are_those_of_whole_rows(
    long_model: Showo, prompting: Prompting, official: bool, options: dict[str, Any]
) -> None:
    """Stories of other lengths side by side; each picture drawn alone, from ids of all that is before it."""
    model, shown = long_model, given(long_model)
    options["steps"] = 4
    stories = tell(model, prompting, TEXTS, shown, [5, 9, 1, 2], **options)
    assert [len(story) for story in stories] == [len(story) for story in TEXTS]
    for seed, texts, first, story in zip([5, 9, 1, 2], TEXTS, shown, stories):
        assert torch.equal(story[: len(first)], first)
        for number in range(len(first), len(story)):
            alone = generate_codes(
                model,
                prompting,
                [texts[number]],
                earlier=Earlier([texts[:number]], [story[:number]]),
                seed=seed + number,
                official=official,
                **options,
            )
            assert torch.equal(alone[0] + model.config.vocabulary.image_offset, story[number])


def test_pictures_are_read_once(long_model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The given one, and each that is drawn but the last; a text when its picture is drawn, and when it is kept."""
    vocab, seen, eot = long_model.config.vocabulary, [], prompting.eot
    hidden_states = long_model.hidden_states

    def spied(ids: Tensor, **rest: Any) -> Tensor:
        seen.extend(row for row in ids.tolist() if vocab.mask_id not in row)  # the others are being drawn
        return hidden_states(ids, **rest)

    monkeypatch.setattr(long_model, "hidden_states", spied)
    shown = given(long_model)[1]
    (story,) = tell(long_model, prompting, [[[1], [2], [3]]], [shown], [0], steps=3, guidance=0.0)
    marked = [[vocab.soi, *image, vocab.eoi] for image in story.tolist()]
    first, second, third = [vocab.t2i, eot, 1, eot], [eot, 2, eot], [eot, 3, eot]
    assert seen == [first, marked[0], second, second, marked[1], third]


def test_a_session_is_not_computed_as_officially(long_model: Showo, prompting: Prompting) -> None:
    with pytest.raises(ValueError, match="a session does not hold its ids"):
        generate_codes(long_model, prompting, [[1]], earlier=Session(long_model, 1), official=True)


def test_a_pipeline_tells_stories(checkpoint: Path) -> None:
    """In batches of any size: the pictures that `generate` draws after earlier ones, which are read as the model sees
    them.
    """
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    red = Image.new("RGB", (24, 16), "red")
    stories, options = [["a", "b"], ["c"], ["d", "e", "f"]], {"steps": 3, "guidance": 1.0}
    told = pipe.interleave(stories, [[], [], [red]], seed=5, batch=2, **options)
    assert pipe.interleave(stories, [[], [], [red]], seed=5, **options) == told
    assert [len(story) for story in told] == [2, 1, 3]
    (as_read,) = pipe.decode(pipe.encode([red], GRID) - pipe.model.config.vocabulary.image_offset, GRID)
    assert told[2][0] == as_read
    assert pipe.generate(["e"], earlier=[[("d", red)]], seed=5 + 4, **options) == told[2][1:2]
    assert pipe.generate(["c"], seed=7, **options) == told[1]
    assert pipe.interleave([["a"]], size=(8, 24), **options)[0][0].size == (8, 24)


def test_stories_that_cannot_be_told(checkpoint: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    red = Image.new("RGB", (16, 16), "red")
    with pytest.raises(UserError, match="given pictures of 1 stories for 2 stories"):
        pipe.interleave([["a"], ["b"]], [[red]])
    with pytest.raises(UserError, match="story 1 has no text"):
        pipe.interleave([["a"], []])
    with pytest.raises(UserError, match="story 0 has 2 pictures for 1 texts; each picture follows its text"):
        pipe.interleave([["a"]], [[red, red]])
    with pytest.raises(UserError, match="story 0: 6 texts and pictures take 144 positions; this model has 128"):
        pipe.interleave([["a"] * 6])
    long = "x" * 18  # of a row beside that of the story itself, which has 123 positions
    for options in ({"negative_prompt": long}, {"also": [("b", 1.0), (long, 1.0)]}):
        with pytest.raises(UserError, match="story 0: 5 texts and pictures take 140 positions; this model has 128"):
            pipe.interleave([["a"] * 5], **options)
    with pytest.raises(TypeError, match="stories must be texts, such as"):
        pipe.interleave("a")
    with pytest.raises(TypeError, match="stories must be a text, or a list of texts, got 3"):
        pipe.interleave([["a"], 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="given must be a picture"):
        pipe.interleave([["a"]], [["a.png"]])  # type: ignore[list-item]


def test_a_single_story(checkpoint: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    red = Image.new("RGB", (16, 16), "red")
    (alone,), (listed,) = pipe.interleave(["a", "b"], [red], steps=2), pipe.interleave([["a", "b"]], [[red]], steps=2)
    assert [picture.tobytes() for picture in alone] == [picture.tobytes() for picture in listed]


def test_on_the_command_line(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(picture) as image:
        (expected,) = ShowoPipeline.from_pretrained(checkpoint).interleave([["a", "b"]], [[image]], steps=3, seed=4)
    options = ["-m", checkpoint, "--steps", 3, "--seed", 4, "--picture", picture]
    assert run("story", "a", " b\n", *options, "-o", "s.png", "--output-dir", "single", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"pictures": ["single/0.png", "single/1.png"], "sheet": "s.png", "texts": ["a", "b"]}
    for file, drawn in zip(told["pictures"], expected):
        with Image.open(file) as found:
            assert found.tobytes() == drawn.tobytes()
    assert run("story", "a", "b", *options, "--negative", "c", "--guidance", 50, "-o", "other.png") == 0
    assert capsys.readouterr().out == "other.png\n"
    assert Path("other.png").read_bytes() != Path("s.png").read_bytes()
    assert {path.name for path in tmp_path.rglob("*.*")} == {"s.png", "other.png", "0.png", "1.png", picture.name}


def test_mistakes_on_the_command_line(
    unreadable: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for arguments, message in (
        (["-p", "absent.png"], "absent.png: no such picture"),
        (["-p", picture, "-p", picture], "2 pictures for 1 texts; each picture follows its text"),
        (["-o", "a.txt"], "--output a.txt: the name must end in .png"),
        (["-o", "d/0.png", "--output-dir", "d"], "--output d/0.png is the name of a single picture"),
        (["--sampler", "gibbs"], "sampler must be confidence"),
        (["x" * 19], "prompt 2 is too long: 19 tokens, at most 18 fit"),
        (["b"] * 5, "story 0: 6 texts and pictures take 144 positions; this model has 128"),
        (["--also", "x" * 19 + "=1"], "--also 1 is too long: 19 tokens, at most 18 fit"),
        ([], "/model.safetensors"),
    ):
        assert message in failure(capsys, "story", "a", *arguments, "-m", unreadable)
    assert {path.name for path in tmp_path.iterdir()} == before
