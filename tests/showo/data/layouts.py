"""Small data of every layout, written where a test wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from showo.data.make_assets import encode_png
from showo.data.sample import Source
from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.data.tar import write_tar


def png(colour: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    return encode_png(Image.new("RGB", size, colour))


def write_pairs(path: Path, keys: Sequence[str], captions: Mapping[str, bytes] | None = None) -> Path:
    """A tar of key.png and key.txt; the captions are "caption of KEY" but for those that are given."""
    given = captions or {}
    files = (
        [(f"{key}.png", png()) for key in keys],
        [(f"{key}.txt", given.get(key, f"caption of {key}".encode())) for key in keys],
    )
    write_tar(path, [file for pair in zip(*files) for file in pair])
    return path


def write_table(path: Path, rows: Mapping[str, Sequence[Any]], group: int = 3) -> Path:
    pq.write_table(pa.table(dict(rows)), path, row_group_size=group)
    return path


def write_json(path: Path, value: Any) -> Path:
    """One entry a line for .jsonl."""
    text = "".join(json.dumps(entry) + "\n" for entry in value) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text)
    return path


def conversation(key: str, *said: str, image: Any = None) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return {"id": key, **({"image": image} if image is not None else {}), "conversations": turns}


def source(layout: str, *files: Path, cache: Path | None = None, **more: Any) -> Source:
    config = SourceConfig(layout=layout, files=[str(path) for path in files], **more)
    return open_source(config, cache or files[0].parent / "cache")
