"""Picture sheets: grids with a caption under each picture, and files that appear whole or not at all."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .files import atomic_path


def sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    scale: int = 1,
    gap: int = 4,
) -> Image.Image:
    """Equally large pictures in a grid on white, each enlarged `scale` times, with its caption below."""
    if not pictures:
        raise ValueError("pictures: expected at least one")
    width, height = (side * scale for side in pictures[0].size)
    font = ImageFont.load_default(size=11)
    line = 13
    wrapped = [_wrap(c, font, width) for c in captions] if captions is not None else []
    footer = line * max((len(w) for w in wrapped), default=0)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + footer + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pictures):
        x = gap + (i % columns) * (width + gap)
        y = gap + (i // columns) * (height + footer + gap)
        canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(wrapped[i] if wrapped else []):
            draw.text((x + width // 2, y + height + number * line), text, fill="black", font=font, anchor="ma")
    return canvas


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int = 3) -> list[str]:
    per_line = max(4, int(width / max(1.0, font.getlength("n"))))
    return textwrap.wrap(text, per_line, max_lines=lines, placeholder="...") or [""]


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Writes the picture whole or not at all; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.save(temporary, **options)
