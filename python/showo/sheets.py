"""Sheets: pictures in a grid, with a caption under each."""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 4  # pixels around every picture
LINE = 13  # pixels from one line of a caption to the next
MAX_LINES = 3
_FONT_SIZE = 11
# For characters that the font of Pillow lacks (it has little but ASCII): the first of these that is installed.
_OTHER_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf")
_NO_CHARACTER = "\U0010ffff"  # has no picture in any font, and so is drawn as what is missing is drawn


class Sheet:
    """The layout of a sheet, known before its pictures are: `size` in pixels, `draw` when they are there.

    picture: (width, height) of every picture; each is enlarged `scale` times.
    captions: one for each picture, or None; a caption is cut after MAX_LINES lines. Where no font at hand has all of
        its characters, the picture's number stands there instead, and a warning says so.
    """

    def __init__(
        self,
        count: int,
        picture: tuple[int, int],
        captions: Sequence[str] | None = None,
        *,
        columns: int = 8,
        scale: int = 1,
    ) -> None:
        self.count, self.columns = count, min(columns, count)
        self.width, self.height = (side * scale for side in picture)
        self.captions = _laid_out(captions or [], self.width)
        self.footer = LINE * max((len(lines) for _, lines in self.captions), default=0)
        rows = -(-count // self.columns)
        self.size = (self.columns * (self.width + GAP) + GAP, rows * (self.height + self.footer + GAP) + GAP)

    def draw(self, pictures: Sequence[Image.Image]) -> Image.Image:
        canvas = Image.new("RGB", self.size, "white")
        pen = ImageDraw.Draw(canvas)
        for i, picture in enumerate(pictures):
            x = GAP + (i % self.columns) * (self.width + GAP)
            y = GAP + (i // self.columns) * (self.height + self.footer + GAP)
            canvas.paste(picture.resize((self.width, self.height), Image.Resampling.NEAREST), (x, y))
            font, lines = self.captions[i] if self.captions else (None, [])
            for number, text in enumerate(lines):
                place = (x + self.width // 2, y + self.height + number * LINE)
                pen.text(place, text, fill="black", font=font, anchor="ma")
        return canvas


def sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str] | None = None, *, columns: int = 8, scale: int = 1
) -> Image.Image:
    """A sheet of equally large pictures, at least one; see `Sheet`."""
    return Sheet(len(pictures), pictures[0].size, captions, columns=columns, scale=scale).draw(pictures)


def _laid_out(captions: Sequence[str], width: int) -> list[tuple[Font, list[str]]]:
    """Font and lines of every caption."""
    laid_out, numbered = [], []
    for number, caption in enumerate(captions):
        font = _font_for(caption)
        if font is None:
            numbered.append(number)
            font, caption = _fonts()[0], str(number)
        laid_out.append((font, _wrapped(caption, font, width)))
    if numbered:
        shown = ", ".join(map(str, numbered[:8])) + (", ..." if len(numbered) > 8 else "")
        warnings.warn(
            f"no font here has all characters of the captions of pictures {shown} (counted from 0); "
            "the sheet shows their numbers instead",
            stacklevel=2,
        )
    return laid_out


@functools.cache
def _fonts() -> list[Font]:
    """Pillow's own font, and those of _OTHER_FONTS that are installed."""
    fonts: list[Font] = [ImageFont.load_default(size=_FONT_SIZE)]
    for name in _OTHER_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, _FONT_SIZE))
        except OSError:  # it is not installed
            continue
    return fonts


def _font_for(text: str) -> Font | None:
    """The first font that has all characters of `text`, or None."""
    shown = {character for character in text if not character.isspace()}
    for font in _fonts():
        missing = _shape(font, _NO_CHARACTER)
        if all(_shape(font, character) != missing for character in shown):
            return font
    return None


def _shape(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    character = max(1.0, font.getlength("n"), font.getlength(text) / max(1, len(text)))
    per_line = max(4, int(width / character))
    return textwrap.wrap(text, per_line, max_lines=MAX_LINES, placeholder="...") or [""]
