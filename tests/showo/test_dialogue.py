"""Questions and answers as the released models were tuned with them."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from showo.dialogue import SYSTEM_PROMPT, TEMPLATES, bare_question, encode_dialogue, question_text
from showo.tokens import TextTokenizer

TURNS = [(" What is\nit? ", "A red star.\nIt shines.  "), ("Sure?", "yes")]


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_file("bundled:tiny/showo")


@pytest.mark.parametrize(("template", "start"), [("showo", "USER: \n"), ("phi1.5", "USER: ")])
def test_turns_in_a_template(tokenizer: TextTokenizer, template: str, start: str) -> None:
    dialogue = encode_dialogue(TURNS, tokenizer, template)
    texts = [(tokenizer.decode(question), tokenizer.decode(answer)) for question, answer in dialogue.turns]
    assert texts == [
        (f"{start}What is it? ASSISTANT:", " A red star.\nIt shines."),
        (f"{start}Sure? ASSISTANT:", " yes"),
    ]
    for (question, answer), (asked, _) in zip(dialogue.turns, TURNS, strict=True):
        assert question == tokenizer.encode(question_text(asked, template))
        # Together they are the ids of the whole text, which the official code makes them from.
        assert [*question, *answer] == tokenizer.encode(tokenizer.decode([*question, *answer]))


def test_system_prompt_is_28_pieces() -> None:
    """Each of them, a word with its space or a mark, is one id of the released text tokenizer."""
    assert len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(SYSTEM_PROMPT)) == 28


def test_questions_keep_their_braces() -> None:
    assert question_text("{0} {x}", "phi1.5") == "USER: {0} {x} ASSISTANT:"
    assert [bare_question(question_text("{0} {x}", template)) for template in TEMPLATES] == ["{0} {x}"] * 2
    assert question_text(None) == bare_question("") == ""
    with pytest.raises(KeyError, match="vicuna"):
        question_text("x", "vicuna")
