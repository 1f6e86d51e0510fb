"""Chats: every turn is what the whole row, made as in training and computed again for each id, would answer."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from showo.dialogue import SYSTEM_PROMPT, Dialogue, question_text
from showo.engine.pipeline import ShowoPipeline
from showo.engine.session import Session
from showo.engine.tasks.chat import check_turns
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting
from tests.showo.command import failure, run

LETTERS = [ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]


def only_letters(pipe: ShowoPipeline, end: float) -> None:
    """Makes the model answer in letters, so that texts and ids tell the same, and bends how likely an end is."""
    tokenizer = pipe.text_tokenizer
    letters = {id_ for letter in LETTERS for id_ in tokenizer.encode(chr(letter))}
    bias = pipe.model.showo.lm_head.bias.data
    for id_ in range(pipe.model.config.text_vocab_size):
        if id_ not in letters:
            bias[id_] = -1e4
    bias[tokenizer.eos] = end


@pytest.fixture
def pipe(checkpoint: Path) -> ShowoPipeline:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    only_letters(pipe, -1e4)
    return pipe


@pytest.fixture
def images() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def next_id(pipe: ShowoPipeline, shown: Tensor, turns: Sequence[tuple[str | None, str]]) -> int:
    """What continues the last answer of a row of training, greedily."""
    tokenizer = pipe.text_tokenizer
    long = Prompting(pipe.prompting.vocabulary, eot=tokenizer.eos, max_text_len=150)
    ids = [(tokenizer.encode(question_text(question)), tokenizer.encode(answer)) for question, answer in turns]
    batch = long.mmu([shown] if len(shown) else [torch.empty(0, 16, dtype=torch.int64)], [Dialogue(ids)])
    end = int((batch.input_ids != pipe.prompting.vocabulary.pad).sum()) - 2  # before the eot of the last answer
    with torch.no_grad():
        logits = pipe.model(batch.input_ids, mask=batch.mask)[0, end]
    return int(logits[: pipe.model.config.text_vocab_size].argmax())


def recomputed(
    pipe: ShowoPipeline, shown: Tensor, before: Sequence[tuple[str | None, str]], question: str | None, limit: int
) -> str:
    answer = ""
    while len(answer) < limit:
        id_ = next_id(pipe, shown, [*before, (question, answer)])
        if id_ == pipe.text_tokenizer.eos:
            break
        answer += pipe.text_tokenizer.decode([id_])
    return answer


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("ends", [True, False])
def test_turns_are_those_of_the_whole_row(
    pipe: ShowoPipeline, images: list[Image.Image], count: int, ends: bool
) -> None:
    """About no picture, one or several; answers that end, and answers that are cut and so ended before the next."""
    shown = pipe.encode(images[:count], (4, 4)) if count else torch.empty(0, 16, dtype=torch.int64)
    if ends:
        with torch.no_grad():
            pipe.model.showo.lm_head.bias[pipe.text_tokenizer.eos] = 6.0
    chat, told = pipe.chat(images[:count]), []
    for question in ("a", "bc", "d"):
        answer = chat.ask(question, max_new_tokens=5)
        assert answer == recomputed(pipe, shown, told, question, 5)
        told.append((question, answer))
    assert [(turn.question, turn.answer) for turn in chat.turns] == told
    assert [turn.finished for turn in chat.turns] == [len(answer) < 5 for _, answer in told]
    assert any(turn.finished for turn in chat.turns) == ends


def test_the_first_answer_is_that_of_describe(pipe: ShowoPipeline, images: list[Image.Image]) -> None:
    """With the same seed; and no other chat that goes on meanwhile changes a turn."""
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "max_new_tokens": 8}
    chats = [pipe.chat([image], seed=seed) for image, seed in zip(images, (4, 9))]
    together = [[chat.ask(question, **options) for chat in chats] for question in ("a", "b")]
    assert [together[0][0]] == pipe.describe(images[:1], "a", seed=4, **options)
    alone = pipe.chat(images[1:], seed=9)
    assert [alone.ask(question, **options) for question in ("a", "b")] == [turn[1] for turn in together]
    other = pipe.chat(images[1:], seed=10)
    assert [other.ask(question, **options) for question in ("a", "b")] != [turn[1] for turn in together]


def test_a_caption_of_several_pictures(pipe: ShowoPipeline, images: list[Image.Image]) -> None:
    """Key frames in one row, whose order matters."""
    shown = pipe.encode(images, (4, 4))
    caption = pipe.chat(images).ask(max_new_tokens=6)
    assert caption == recomputed(pipe, shown, [], None, 6)
    assert caption != pipe.chat(images[::-1]).ask(max_new_tokens=6)


def test_a_turn_reads_itself_alone(
    pipe: ShowoPipeline, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = pipe.chat(images)
    chat.ask("a", max_new_tokens=3)
    seen: list[int] = []
    hidden_states = pipe.model.hidden_states
    monkeypatch.setattr(
        pipe.model, "hidden_states", lambda ids, **rest: seen.append(ids.shape[1]) or hidden_states(ids, **rest)
    )
    chat.ask("b", max_new_tokens=3)
    question = len(pipe.text_tokenizer.encode(question_text("b")))
    assert seen == [1 + 1 + question, 1, 1]  # the id of the last answer that nothing had read, and its end


def test_an_answer_that_nobody_takes_to_its_end(pipe: ShowoPipeline, images: list[Image.Image]) -> None:
    """What was taken of it stays, and is ended before the next question; one that was never begun is empty."""
    shown = pipe.encode(images[:1], (4, 4))
    chat = pipe.chat(images[:1])
    stream = chat.stream("a")
    taken = next(stream) + next(stream)
    chat.stream("b")
    assert list(stream) == []
    assert chat.ask("c", max_new_tokens=4) == recomputed(pipe, shown, [("a", taken), ("b", "")], "c", 4)
    assert [turn.answer for turn in chat.turns[:2]] == [taken, ""]


def test_pieces_are_whole_characters(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " né 語 \U0001f600  x \n"

    seeds: list[Any] = []

    def said(session: Session, **options: object) -> Iterator[list[int | None]]:
        seeds.append(options["seed"])
        yield from ([id_] for id_ in pipe.text_tokenizer.encode(text))

    monkeypatch.setattr(Session, "generate_text", said)
    assert list(pipe.chat().stream("a")) == ["n", "é", " 語", " \U0001f600", "  x"]
    chat = pipe.chat(seed=3)
    assert chat.ask("a") == chat.ask("b") == text.strip()
    assert seeds == [0, 3, 4]  # each turn has its own


def test_a_full_model_says_so(pipe: ShowoPipeline, images: list[Image.Image]) -> None:
    chat = pipe.chat(images)
    with pytest.raises(UserError, match="the question is empty"):
        chat.ask(" ")
    with pytest.raises(UserError, match="top_p must lie in"):
        chat.ask("a", top_p=0)
    with pytest.raises(UserError, match="turn 1 of the chat takes 136 positions, and 128 of the model's 128 are left"):
        chat.ask("x" * 80)
    with pytest.raises(UserError, match="turn 1 of the chat takes 128 positions, and 128 of the model's 128 are left"):
        chat.ask("x" * 72)  # which leaves no position for an answer
    assert chat.turns == []
    with pytest.warns(UserWarning, match="the answer was cut: the model's 128 positions are used up"):
        answer = chat.ask("a", max_new_tokens=500)
    assert len(answer) == 128 - 38 - len(pipe.text_tokenizer.encode(question_text("a")))
    with pytest.raises(UserError, match="turn 2 of the chat takes 20 positions, and 0 of"):
        chat.ask("b")
    with pytest.raises(UserError, match="a caption is asked for in the first turn"):
        chat.ask()
    assert len(chat.turns) == 1
    with pytest.raises(UserError, match="7 pictures take 128 positions; this model has 128"):
        pipe.chat([*images * 3, images[0]])
    with pytest.raises(UserError, match="2 pictures take 134 positions"):
        pipe.chat(images, size=(32, 32))


def test_turns_are_checked_as_if_answers_were_empty(pipe: ShowoPipeline, images: list[Image.Image]) -> None:
    only_letters(pipe, 1e4)
    longest = {"a": 71, "b": 50}
    for before, letter in (([], "a"), ([None, "b"], "b")):
        fits, too_long = ([*before, letter * (longest[letter] + more)] for more in (0, 1))
        chat = pipe.chat(images)
        assert [chat.ask(question) for question in fits] == [""] * len(fits)
        check_turns(pipe, len(images), fits, None)
        chat = pipe.chat(images)
        with pytest.raises(UserError) as told:
            [chat.ask(question) for question in too_long]
        with pytest.raises(UserError, match=re.escape(str(told.value))):
            check_turns(pipe, len(images), too_long, None)


class Tower:
    """Features of a vision tower: the four quarters of a picture, seen by nobody's weights."""

    side, image_tokens, width = 4, 4, 24

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().reshape(len(pixels), 4, 12).repeat(1, 1, 2) / 8


def test_a_model_with_clip(checkpoint: Path, images: list[Image.Image]) -> None:
    parts = ShowoPipeline.from_pretrained(checkpoint)
    torch.manual_seed(0)
    config = replace(parts.model.config, w_clip_vit=True, clip_width=24, max_positions=320)
    pipe = ShowoPipeline(Showo(config).eval(), parts.image_tokenizer, parts.text_tokenizer)
    pipe.__dict__["tower"] = Tower()
    with torch.no_grad():
        for parameter in pipe.model.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    only_letters(pipe, -1e4)
    encode, chat, turns = pipe.text_tokenizer.encode, pipe.chat(images[:1]), []
    long = Prompting(config.vocabulary, eot=pipe.text_tokenizer.eos, max_text_len=150)
    for question in ("a", "b"):
        answer = chat.ask(question, max_new_tokens=4)
        for end in range(4):
            said = Dialogue([*turns, (encode(question_text(question, "phi1.5")), encode(answer[:end]))])
            batch = long.mmu_vit([said], encode(SYSTEM_PROMPT), pipe.see(images[:1]), image_tokens=4)
            last = int((batch.input_ids != config.vocabulary.pad).sum()) - 2
            with torch.no_grad():
                states = pipe.model.hidden_states(batch.input_ids, mask=batch.mask, features=batch.features)
                logits = pipe.model.logits(states[0, last], (0, config.text_vocab_size))
            assert pipe.text_tokenizer.decode([int(logits.argmax())]) == answer[end]
            if end == 0:  # letters may hide that the pictures are others
                torch.testing.assert_close(chat._session._last[0, 0], states[0, last], rtol=1e-4, atol=1e-4)
        turns.append((encode(question_text(question, "phi1.5")), encode(answer)))
    with pytest.raises(UserError, match="this model, which has CLIP-ViT, can talk about one picture, got 2"):
        pipe.chat(images)
    with pytest.raises(UserError, match="size: this model sees all pictures in the size of its vision tower"):
        pipe.chat(images[:1], size=(16, 16))


def test_on_the_command_line(
    checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions as options or as lines of standard input; answers as text or as JSON."""
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    with Image.open(picture) as image:
        chat = pipe.chat([image, image], seed=3)
    expected = [chat.ask(question, max_new_tokens=5, temperature=1.0) for question in (None, "a", "b")]
    options = ["-m", checkpoint, "--caption", "--max-tokens", 5, "--temperature", 1, "--seed", 3]
    assert run("chat", picture, picture, *options, "-q", "a", "-q", "b") == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\n  b \n"))
    assert run("chat", picture, picture, *options, "--json") == 0
    turns = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [turn["answer"] for turn in turns] == expected
    assert [turn["question"] for turn in turns] == [None, "a", "b"]


def test_mistakes_on_the_command_line(
    checkpoint: Path,
    unreadable: Path,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def message(*arguments: object) -> str:
        return failure(capsys, "chat", *arguments, "-m", unreadable)

    assert "absent.png: no such picture" in message("absent.png", "-q", "a")
    assert "--question 2 is empty" in message("-q", "a", "-q", " ")
    assert "holds bytes that are not valid in its encoding" in message("-q", "\udcff")
    assert "top_p must lie in (0, 1], got 2.0" in message("-q", "a", "--top-p", 2)
    assert "8 pictures take 146 positions; this model has 128" in message(*[picture] * 8, "-q", "a")
    assert "turn 1 of the chat takes 136 positions, and 128 of" in message(picture, picture, "-q", "x" * 80)
    assert "turn 2 of the chat takes 89 positions, and 89 of" in message(picture, picture, "--caption", "-q", "x" * 71)
    assert "/model.safetensors" in message(picture, picture, "--caption", "-q", "x" * 70)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    assert "holds bytes that are not valid in its encoding" in failure(capsys, "chat", picture, "-m", checkpoint)
