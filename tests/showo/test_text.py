"""The normal form of captions and prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from showo import ShowoPipeline
from showo.data.sources import read_pictures
from showo.dialogue import question_text
from showo.errors import UserError
from showo.text import clean_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("red apple\n", "red apple"),
        ("\ufeffred apple", "red apple"),
        ("red\u00a0\t  apple\r\n", "red apple"),
        ("red\u200b\u00ad apple\u2028", "red apple"),
        ("\u202ered apple\u202c\x00\x7f", "red apple"),
        ("pin\u0303ata", "pi\u00f1ata"),
        ("\u200f\u05d0\u05d1", "\u05d0\u05d1"),
        (" \n\ufeff", ""),
        # What shapes a glyph stays: a family joined from two people, a red heart, the flag of Wales.
        *[(t, t) for t in ("\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "\U0001f3f4\U000e0067\U000e0062\U000e007f")],
    ],
)
def test_what_nobody_sees_goes(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text())
def test_clean_text_stays_as_it_is(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


def test_the_bundled_captions_are_clean() -> None:
    """What the bundled model was trained on is what it is asked for today."""
    captions = [sample.caption for sample in read_pictures("bundled:emoji/*.tar")]
    assert captions == [clean_text(caption) for caption in captions]


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UserError, match="expected UTF-8"):
        clean_text("caf\udce9")


def test_prompts_and_questions_are_cleaned() -> None:
    assert question_text("What is\nthis?\n") == "USER: \nWhat is this? ASSISTANT:"
    pipe = ShowoPipeline.from_pretrained()
    with pytest.raises(TypeError, match=r"a sequence of texts, got the text 'red'; write \['red'\]"):
        pipe.text_ids("red")
    with pytest.raises(TypeError, match=r"prompt must be a text, or a list of texts, got \[b'red'\]"):
        pipe.generate([b"red"])  # type: ignore[list-item]
    clean, same = (pipe.generate([prompt], steps=2)[0] for prompt in ("red apple", "\ufeffred  apple\n"))
    assert clean.tobytes() == same.tobytes()
