"""Small shards of drawn pictures, so that the trainers' tests need seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from showo.data.make_assets import encode_png
from showo.data.tar import write_tar

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "teal", "brown")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train-0000.tar (16 pictures) and val-0000.tar (4) of 32x32 circles and squares with captions."""
    folder = tmp_path_factory.mktemp("shards")
    samples = []
    for shape in ("circle", "square"):
        for colour in COLOURS:
            image = Image.new("RGB", (32, 32), "white")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 26, 26), fill=colour)
            samples.append((f"{colour}-{shape}", encode_png(image), f"{colour} {shape}"))
    for name, part in (("train", samples), ("val", samples[::4])):
        files = [f for key, png, text in part for f in ((f"{key}.png", png), (f"{key}.txt", text.encode()))]
        write_tar(folder / f"{name}-0000.tar", files)
    return folder
