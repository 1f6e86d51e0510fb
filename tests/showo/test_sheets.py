"""Sheets: where pictures and captions lie, and what is drawn for characters that a font lacks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image, ImageFont

from showo import sheets
from showo.sheets import GAP, LINE, Sheet, sheet


def test_pictures_lie_in_rows_and_the_size_is_known_before() -> None:
    colours = ["red", "green", "blue", "black", "yellow"]
    pictures = [Image.new("RGB", (8, 6), colour) for colour in colours]
    layout = Sheet(5, (8, 6), columns=2, scale=3)
    drawn = layout.draw(pictures)
    assert drawn.size == layout.size == (2 * (24 + GAP) + GAP, 3 * (18 + GAP) + GAP)
    for number, picture in enumerate(pictures):
        x, y = GAP + number % 2 * (24 + GAP), GAP + number // 2 * (18 + GAP)
        assert drawn.crop((x, y, x + 24, y + 18)).getcolors() == [(24 * 18, picture.getpixel((0, 0)))]


def ink(image: Image.Image) -> int:
    """How many pixels of the strip under the one picture are dark."""
    return int((np.asarray(image.convert("L"))[GAP + 8 :] < 128).sum())


def test_captions_lie_under_their_pictures() -> None:
    picture = Image.new("RGB", (60, 8), "white")
    assert ink(sheet([picture])) == 0
    assert ink(sheet([picture], ["word"])) > 10
    long = Sheet(1, (60, 8), ["many words that do not fit below a picture of sixty pixels, not even in three lines"])
    assert long.size[1] == 8 + 2 * GAP + sheets.MAX_LINES * LINE


def test_the_first_font_that_has_all_characters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greek(ImageFont.FreeTypeFont):
        """Knows alpha, as a picture of its own, and nothing else."""

        def __init__(self) -> None:
            self.inner = ImageFont.load_default(size=11)

        def getmask(self, text: str, *rest: object, **more: object) -> Image.core.ImagingCore:  # type: ignore[override]
            return self.inner.getmask("W" if text == "α" else "\U0010ffff")

    default, greek = ImageFont.load_default(size=11), Greek()
    monkeypatch.setattr(sheets, "_fonts", lambda: [default, greek])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sheets._font_for("word 1") is default
        assert sheets._font_for("α") is greek
    assert sheets._font_for("αβ") is None


def test_a_caption_that_no_font_has_is_numbered_with_a_warning() -> None:
    picture = Image.new("RGB", (60, 8), "white")
    with pytest.warns(UserWarning, match=r"captions of pictures 1 \(counted from 0\)"):
        drawn = sheet([picture, picture], ["a", "\ue000 x"])
    assert drawn.tobytes() == sheet([picture, picture], ["a", "1"]).tobytes()
