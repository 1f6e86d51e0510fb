"""A row as text says what the model reads, what it is to predict, and what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from showo.batch import IGNORE
from showo.data.draw_row import draw_row
from showo.dialogue import Dialogue
from showo.prompting import Prompting
from showo.tokens import TextTokenizer, Vocabulary

VOCABULARY = Vocabulary(257, 64)


@pytest.fixture
def texts(checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_file(checkpoint / "showo")


@pytest.fixture
def bytes_prompting(texts: TextTokenizer) -> Prompting:
    return Prompting(VOCABULARY, eot=texts.eos, max_text_len=80)


def table(drawn: str) -> list[list[str]]:
    lines, _, _ = drawn.partition("\n\n")
    starts = [lines.index(heading) for heading in ("position", "input", "target")]
    return [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])] for line in lines.splitlines()[1:]]


def test_a_picture_to_be_drawn(texts: TextTokenizer, bytes_prompting: Prompting) -> None:
    codes = torch.tensor([[VOCABULARY.image_offset + code for code in (7, 0, 63, 9)]])
    hidden = torch.tensor([[False, True, False, True]])
    inputs, targets = codes.masked_fill(hidden, VOCABULARY.mask_id), codes.masked_fill(~hidden, IGNORE)
    batch = bytes_prompting.t2i([texts.encode("red")], inputs, targets)
    marks = [["76", "<|endoftext|>", "-"], ["77 to 79", "'red'", "-"], ["80", "<|endoftext|>", "-"]]
    picture = [["81", "<|soi|>", "<|soi|>"], ["82 to 85", "2 codes, 2 hidden codes", "2 codes"]]
    end = [["86", "<|eoi|>", "<|eoi|>"]]
    assert table(draw_row(batch.packed(VOCABULARY.pad), texts, VOCABULARY)) == [
        ["75", "<|t2i|>", "-"],
        *marks,
        *picture,
        *end,
    ]
    assert table(draw_row(batch, texts, VOCABULARY))[0] == ["0 to 74", "[PAD] x 75", "-"]
    drawn = draw_row(batch, texts, VOCABULARY)
    assert drawn.endswith("\n\n" + batch.mask.draw(width=40))


def test_codes_that_the_image_tokenizer_will_say_are_codes(texts: TextTokenizer, bytes_prompting: Prompting) -> None:
    later = torch.arange(VOCABULARY.size, VOCABULARY.size + 4)[None]
    drawn = draw_row(bytes_prompting.mmu(later, [texts.encode("a")]).packed(VOCABULARY.pad), texts, VOCABULARY)
    assert ["2 to 5", "4 codes", "-"] in table(drawn)


def test_of_a_dialogue_what_is_given_and_what_is_learned_stand_apart(
    texts: TextTokenizer, bytes_prompting: Prompting
) -> None:
    dialogue = Dialogue([(texts.encode("who?"), texts.encode(" me")), (texts.encode("why?"), texts.encode(" so"))])
    batch = bytes_prompting.mmu([torch.empty(0, 4, dtype=torch.int64)], [dialogue]).packed(VOCABULARY.pad)
    assert table(draw_row(batch, texts, VOCABULARY)) == [
        ["0", "<|mmu|>", "-"],
        ["1", "<|endoftext|>", "-"],
        ["2 to 4", "'who'", "-"],
        ["5 to 8", "'? me'", "' me' <|endoftext|>"],
        ["9", "<|endoftext|>", "-"],
        ["10 to 12", "'why'", "-"],
        ["13 to 16", "'? so'", "' so' <|endoftext|>"],
        ["17", "<|endoftext|>", "-"],
    ]


def test_features_are_named_and_long_texts_are_shortened(texts: TextTokenizer, bytes_prompting: Prompting) -> None:
    text = texts.encode("x" * 30 + "y" * 10 + "z" * 30)
    batch = bytes_prompting.mmu_vit([text], [], torch.zeros(1, 3, 8), image_tokens=3).packed(VOCABULARY.pad)
    found = table(draw_row(batch, texts, VOCABULARY))
    assert found[2] == ["2 to 4", "3 features", "-"]
    assert found[4][1:] == [f"'{'x' * 30} ... {'z' * 30}'", f"'{'x' * 29}y ... {'z' * 30}' <|endoftext|>"]
