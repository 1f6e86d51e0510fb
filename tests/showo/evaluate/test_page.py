"""docs/evaluation.md: its commands run as they stand, with a small model in place of the bundled one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.showo.command import run

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make, evaluate = re.findall(r"^showo .*$", PAGE, re.MULTILINE)
    assert run(*shlex.split(make)[1:], "--scenes", 20) == 0
    assert run(*shlex.split(evaluate)[1:], "-m", small_checkpoint, "--count", 2, "--steps", 1) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["report.json", "sheet.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"world", "report.json", "sheet.png"}
