"""What docs/data.md shows is read and runs, and its lists are whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from showo.data.sources import open_source
from showo.data.sources.config import CLEANINGS, LAYOUTS, SourceConfig
from tests.showo.command import run
from tests.showo.data.layouts import png

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_configuration_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    configs = [SourceConfig(**entry) for entry in yaml.safe_load(block)]
    for config in configs:
        config.check("data")
    assert {config.layout for config in configs} == LAYOUTS.keys()


def test_lists_are_whole() -> None:
    sources = [*(ROOT / "python" / "showo" / "data").rglob("*.py"), ROOT / "python" / "showo" / "pictures.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    reasons = re.findall(r'SampleError\((?:[^()]|\([^()]*\))*?"([a-z][a-zA-Z0-9 -]+)",?\s*\)', text)
    assert len(reasons) > 20
    for reason in reasons:
        assert f"`{reason}`" in PAGE, reason
    for name in CLEANINGS:
        assert f"| `{name}` |" in PAGE


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("red-apple", "blue-bird", "-"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/data.md", "exec"), {"__name__": "example"})
    assert set(re.findall(r"'([a-z ]+)', \(4, 4\)", capsys.readouterr().out)) == {"red apple", "blue bird"}


@pytest.mark.slow
def test_the_commands_show_and_make_what_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        assert run(*shlex.split(command)[1:]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"emoji.png", "codes"}
    (config,) = re.findall(r"reads `(\{layout: codes.*?\})`", PAGE)
    source = open_source(SourceConfig(**yaml.safe_load(config)), tmp_path / "cache")
    pictures = open_source(SourceConfig("webdataset", ["bundled:emoji/val-*.tar"]), tmp_path / "cache")
    assert len(source) == len(pictures)
    assert source[5].key == pictures[5].key
