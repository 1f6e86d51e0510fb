"""docs/world.md: its command runs, its YAML reads what that wrote, and its Python draws the picture that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.data.world.sampling import CATEGORIES
from tests.showo.command import run

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "world.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.mark.slow
def test_the_command_and_the_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall("```\n(showo .*)\n```", TEXT)
    assert run(*shlex.split(command)[1:]) == 0
    for stream in yaml.safe_load(block("yaml")).values():
        for config in (*stream["data"], *stream.get("held_out", [])):
            assert len(open_source(SourceConfig(**config), tmp_path / "cache")) >= 100


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "world.md", "exec"), {})
    shown = DOCS / "images" / "world.png"
    assert shown.stat().st_size < 60_000
    with Image.open("world.png") as drawn, Image.open(shown) as there:
        assert drawn.size == there.size
        row = (0, 0, drawn.width, 132)  # of pictures, without the captions, whose font may be another
        assert drawn.crop(row).tobytes() == there.crop(row).tobytes()


def test_the_table_of_shares_is_right() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)` \| (\d+)% \|", TEXT, re.MULTILINE))
    assert {category: int(share) for category, share in rows.items()} == CATEGORIES
