"""What docs/inference.md promises: of official weights with small ones in a cache, else with the bundled model."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from showo.engine.published import published
from showo.engine.sampling import Sampling
from showo.errors import UserError
from showo.tokens import TextTokenizer
from tests.showo.command import run
from tests.showo.published_models import HubCache, make_small, small_showo, write_showo, write_tokenizers

DOCS = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def section(title: str) -> str:
    return DOCS.partition(f"## {title}\n")[2].partition("\n## ")[0]


SECTION = section("Official weights")


@pytest.fixture
def here(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(monkeypatch)
    write_tokenizers(tmp_path / "parts", TextTokenizer.from_file(checkpoint / "showo"))
    cache = HubCache(tmp_path / "hub", monkeypatch)
    cache.add("showlab/magvitv2", tmp_path / "parts" / "magvitv2")
    cache.add("microsoft/phi-1_5", tmp_path / "parts" / "phi-1_5")
    cache.add("showlab/show-o-512x512", write_showo(tmp_path / "parts" / "showo", small_showo(), num_vq_tokens=1024))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_commands(here: Path) -> None:
    (commands,) = re.findall(r"```\n(showo .*?)```", SECTION, re.DOTALL)
    for line in commands.replace("a lighthouse at dusk", "a light").splitlines():  # bytes are tokens here
        assert run(*shlex.split(line, comments=True)[1:]) == 0
    assert (here / "again.png").read_bytes() == (here / "lighthouse.png").read_bytes()


def test_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    exec(compile(code.replace("a lighthouse at dusk", "a light"), "inference.md", "exec"), {})
    assert capsys.readouterr().out.startswith("['")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_cuda_graphs(here: Path, device: str) -> None:
    """Without a GPU the code says that there is none; with nothing but that changed, it draws."""
    (code,) = re.findall(r"```python\n(.*?)```", section("CUDA graphs and torch.compile"), re.DOTALL)
    code = code.replace("a lighthouse at dusk", "a light").replace('device="cuda"', f'device="{device}"')
    if device == "cpu":
        with pytest.raises(UserError, match="cuda_graphs: the device is cpu"):
            exec(code, {})
        code = code.replace("cuda_graphs=True", "cuda_graphs=False")
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["pictures"]) == 1
    assert (names["pipe"].model.graphs is None) == (device == "cpu")


def test_the_table_of_names() -> None:
    rows = re.findall(r"^\| (`.*?) \| ([\d, ]+) \| (.*?) \|$", SECTION, re.MULTILINE)
    told = {}
    for names, codes, settings in rows:
        each = codes.replace("1,024", "1024").split(", ")
        for number, name in enumerate(re.findall(r"`([^`]*)`", names.partition("(")[0])):
            told[name] = (int(each[number % len(each)]), settings)
    assert len(told) == 10
    for name, (codes, settings) in told.items():
        found = published(name)
        assert found is not None
        assert found.num_vq_tokens == codes
        if re.match(r"\d", settings):
            steps, guidance, top = settings.split(", ")
            tops = [0] if top == "all" else [int(k) for k in top.split(" or ")]
            assert found.sampling in [Sampling(int(steps), float(guidance), k) for k in tops]


@pytest.mark.slow
def test_stories_and_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```\n(showo .*?)```", section("Talking about pictures, stories"), re.DOTALL)
    for line in commands.splitlines():
        command, _, promised = line.partition("  # ")
        said, _, command = command.rpartition(" | ")
        monkeypatch.setattr(sys, "stdin", io.StringIO(said.removeprefix("echo ").strip('"') + "\n"))
        assert run(*shlex.split(command)[1:]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert not promised or ", ".join(printed) == promised
    with Image.open("story.png") as drawn, Image.open(IMAGES / "story.png") as shown:
        assert drawn.size == shown.size


@pytest.mark.slow
def test_stories_and_chats_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", section("Talking about pictures, stories"), re.DOTALL)
    exec(compile(code, "inference.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"  # (.*)", code)


@pytest.mark.slow
def test_pictures_from_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and the Python of that section, by the bundled model; their pictures are as large as those shown."""
    section = DOCS.partition("## Pictures from pictures\n")[2].partition("\n## ")[0]
    commands, code = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        assert run(*shlex.split(line)[1:]) == 0
    for name in re.findall(r"from-pictures/((?:inpainted|extended|variation-.|between)\.png)", section):
        with Image.open(name) as made, Image.open(IMAGES / "from-pictures" / name) as shown:
            assert made.size == shown.size
    names: dict[str, Any] = {}
    exec(compile(code, "inference.md", "exec"), names)
    assert names["wider"][0].size == (128, 64)
    assert names["similar"].shape == (3, 3, 64, 64)
    (changed,), scene = names["changed"], names["scene"]
    assert changed.crop((0, 0, 22, 64)).tobytes() == scene.crop((0, 0, 22, 64)).tobytes()


@pytest.mark.slow
def test_composed_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and the Python draw the same blue ring, and the other ring has no blue."""
    command, code = re.findall(r"```(?:python)?\n(.*?)```", section("Composed prompts"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(command)[1:], "--output-dir", "single") == 0
    names: dict[str, Any] = {}
    exec(compile(code, "inference.md", "exec"), names)
    with Image.open("single/0.png") as drawn:
        assert drawn.tobytes() == names["blue"].tobytes()
    for name, of_blue in (("blue", 1.0), ("other", 0.0)):
        red, _, blue = (band.astype(int) for band in np.moveaxis(np.asarray(names[name]), 2, 0))
        coloured = abs(blue - red) > 60
        assert coloured.sum() > 50
        assert abs((blue > red)[coloured].mean() - of_blue) < 0.1
