"""docs/integrations.md: its Python runs as it stands there, and so does every example that it names."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
ARGUMENTS = {"official": [str(ROOT / "tests" / "integrations" / "official_sources")]}
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python(number: int) -> None:
    exec(compile(BLOCKS[number], "integrations.md", "exec"), {})


def test_every_example_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"^python (examples/\w+\.py)", pages, re.MULTILINE))
    assert named == {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", re.findall(r"^python (examples/\w+\.py)", PAGE, re.MULTILINE))
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compares what it computes with another way of computing it, and says how far they are apart."""
    path = ROOT / name
    monkeypatch.setattr("sys.argv", [name, *ARGUMENTS.get(path.stem, [])])
    monkeypatch.setattr("sys.path", sys.path[:])
    runpy.run_path(str(path), run_name="__main__")
    differences = re.findall(r"largest difference (\S+)", capsys.readouterr().out)
    assert differences
    assert all(float(difference) < 1e-4 for difference in differences)
