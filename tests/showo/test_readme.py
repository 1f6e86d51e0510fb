"""The README's examples with the bundled model give what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.showo.command import run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Generate and describe")[2].partition("\n## ")[0]
COMMANDS, PYTHON = re.findall(r"```(?:python)?\n(.*?)```", SECTION, re.DOTALL)


@pytest.mark.slow
def test_generate_and_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS.splitlines():
        command, _, promised = line.partition("#")
        assert run(*shlex.split(command)[1:]) == 0
        printed = capsys.readouterr().out.splitlines()
        if promised:
            assert ", ".join(printed) == promised.strip()
    assert {"sheet.png", "steps.gif"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_same_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, promised = PYTHON.rpartition("#")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == promised.strip()
