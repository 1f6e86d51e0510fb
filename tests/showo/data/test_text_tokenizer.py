"""The text tokenizer's training: what it reads of a world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from showo.data.make_text_tokenizer import train_text_tokenizer, world_texts
from showo.data.sources import read_pictures
from showo.data.world.objects import COLOURS, SHAPES
from showo.data.world.world import World
from showo.data.world.write import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("showo.data.world.world.MIN_HELD_OUT", 2)
        write_world(World(0, 60), folder, lambda: None)
    return folder


def test_all_texts_of_the_training_part_are_read(world: Path) -> None:
    texts = list(world_texts(world))
    captions = [sample.caption for sample in read_pictures(f"{world}/scenes/train-*.tar")]
    assert texts[: len(captions)] == captions
    dialogues = json.loads((world / "questions" / "train.json").read_text())
    question, answer = (turn["value"] for turn in dialogues[-1]["conversations"][-2:])
    assert f"USER: \n{question.removeprefix('<image>').strip()} ASSISTANT: {answer}" in texts
    steps = [json.loads(line) for line in (world / "steps" / "train.jsonl").read_text().splitlines()]
    assert texts[-1] == steps[-1]["frames"][-1]["caption"]
    held_out = [sample.caption for sample in read_pictures(f"{world}/scenes/held-out-*.tar")]
    assert not set(held_out) & set(texts)


def test_words_of_a_world_become_single_tokens(world: Path) -> None:
    tokenizer = train_text_tokenizer(list(world_texts(world)), ["some text to read"] * 20, vocab_size=600)
    words = [f" {word}" for word in (*COLOURS, *SHAPES)]
    assert [len(ids) for ids in tokenizer.encode_batch(words)] == [1] * len(words)
