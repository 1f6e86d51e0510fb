"""`showo evaluate world`: what it writes, with a small random model, and how it says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showo.evaluate.world.report import FRAME
from tests.showo.command import failure, run


def test_table_report_and_sheet(
    small_checkpoint: Path, world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, sheet = tmp_path / "new" / "report.json", tmp_path / "sheet.png"
    options = ["evaluate", "world", "--world", world_folder, "-m", small_checkpoint, "--steps", 2, "--count", 9]
    assert run(*options, "--json", report, "--sheet", sheet, "--check") == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[-5:] == [
        f"missed: {part}: 0.0%, the floor is {floor}"
        for part, floor in (
            ("text to image, seen", "85%"),
            ("text to image, held-out", "60%"),
            ("questions, seen", "95%"),
            ("questions, held-out", "80%"),
            ("steps, seen", "70%"),
        )
    ]
    table = "\n".join(lines)
    assert all(name in table for name in ("binding", "yes-no", "2 objects", "remove", "held-out", "85% (95%)"))
    written = read(report)
    assert written["model"] == str(small_checkpoint)
    assert written["settings"]["steps"] == 2
    assert len(written["missed"]) == 5
    with Image.open(sheet) as image:
        assert image.getpixel((4, 4)) == (255, 0, 0)  # the frame of a wrong picture
        assert image.width == 8 * (2 * (64 + 2 * FRAME) + 4) + 4
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["report.json", "sheet.png"]

    assert run(*options, "--json", report, "--batch", 4) == 0  # nothing is checked
    assert read(report)["cases"] == written["cases"]  # whatever the batch
    assert run(*options, "--json", report, "--seed", 1) == 0
    assert read(report)["cases"] != written["cases"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def changed(world_folder: Path, tmp_path: Path, file: str, text: str) -> Path:
    """The world with another text in one of its files."""
    folder = tmp_path / "world"
    shutil.copytree(world_folder, folder)
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "held-out.json holds no prompts"),
        ("{", "held-out.json is no list of prompts (JSONDecodeError"),
        ('[{"prompt": "a star"}]', "held-out.json is no list of prompts (KeyError: 'demand')"),
        ('"a star"', "held-out.json is no list of prompts (TypeError"),
    ],
)
def test_prompts_that_cannot_be_used(
    text: str,
    message: str,
    small_checkpoint: Path,
    world_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = changed(world_folder, tmp_path, "prompts/held-out.json", text)
    error = failure(capsys, "evaluate", "world", "--world", folder, "-m", small_checkpoint)
    assert message in error
    assert "make the world again" in error


def test_worlds_and_models_that_do_not_fit(
    small_checkpoint: Path,
    checkpoint: Path,
    world_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(world: Path, model: Path, *options: object) -> str:
        return failure(capsys, "evaluate", "world", "--world", world, "-m", model, *options)

    assert "holds no world: world.json is missing" in told(tmp_path, small_checkpoint)
    assert "the model draws 16x16 pixels, pictures of the world have 64x64" in told(world_folder, checkpoint)
    assert "guidance must be 0 or more" in told(world_folder, small_checkpoint, "--step-guidance", "-1")
    assert "--json report.txt: the name must end in .json" in told(
        world_folder, small_checkpoint, "--json", "report.txt"
    )
    entry = read(world_folder / "prompts" / "seen.json")[0]
    entry["prompt"] = "a star " * 20
    folder = changed(world_folder, tmp_path, "prompts/seen.json", json.dumps([entry]))
    assert "the model takes texts of 118 tokens, 'a star a star" in told(folder, small_checkpoint)
    other = read(world_folder / "world.json") | {"format": 0}
    (folder / "world.json").write_text(json.dumps(other))
    assert "is of another version of showo" in told(folder, small_checkpoint)
    assert list(tmp_path.iterdir()) == [folder]
