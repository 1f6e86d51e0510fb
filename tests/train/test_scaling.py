"""docs/scaling.md: its commands run and print what stands there, and its comparisons are those of the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.showo.command import run
from tests.train.test_plan_scale import PUBLISHED, published_plan

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(showo plan .*?)\n```(?:\n\n```text\n(.*?)\n```)?", PAGE, re.DOTALL)


@pytest.mark.parametrize(("command", "printed"), COMMANDS, ids=[f"command {n}" for n in range(len(COMMANDS))])
def test_commands_print_what_the_page_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, printed: str
) -> None:
    """Whole paragraphs of it; neither data nor weights are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run(*shlex.split(command)[1:]) == 0
    found = capsys.readouterr().out.rstrip("\n").split("\n\n")
    for paragraph in filter(None, printed.split("\n\n")):
        assert paragraph in found


def test_no_command_is_left_out() -> None:
    assert len(COMMANDS) == PAGE.count("```sh") == 6


@pytest.mark.parametrize("figures", PUBLISHED, ids=lambda figures: "-".join(map(str, figures[:3])))
def test_published_figures_stand_beside_what_is_predicted(figures: tuple[str, str, int, int, int, int, float]) -> None:
    tokens = published_plan(*figures[:5])
    assert f"| {figures[5]:,} | {tokens:,.0f} |" in PAGE


def test_benchmarks_are_there() -> None:
    modules = re.findall(r"`python -m (benchmarks\.\w+)", PAGE)
    assert {"benchmarks.bench_step_memory", "benchmarks.bench_data"} <= set(modules)
    for module in modules:
        assert (Path(__file__).parents[2] / f"{module.replace('.', '/')}.py").is_file(), module
