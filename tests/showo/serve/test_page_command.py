"""`showo demo` as a process, as docs/page.md and the README call it."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import httpx
import pytest

from tests.ports import free_port
from tests.showo.command import failure, started

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

ROOT = Path(__file__).parents[3]


def commands(file: str) -> list[list[str]]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return [shlex.split(line, comments=True) for line in re.findall(r"^showo demo.*", text, re.MULTILINE)]


def test_the_commands_of_the_docs_serve_until_a_signal(checkpoint: Path) -> None:
    """The longest one, on a free port and with a small model, stands for those that take defaults."""
    *_, command = commands("docs/page.md")
    assert command[2::2] == ["--model", "--port", "--threads"]
    port = free_port()
    with started(command[1], "--model", checkpoint, "--port", port, *command[6:]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        assert "Show-o" in httpx.get(f"http://127.0.0.1:{port}/", timeout=60, trust_env=False).text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_the_address_of_the_docs_is_the_default() -> None:
    from inspect import signature

    from showo.commands.demo import demo

    defaults = {name: each.default for name, each in signature(demo).parameters.items()}
    address = f"http://{defaults['host']}:{defaults['port']}"
    for file in ("docs/page.md", "README.md"):
        assert ["showo", "demo"] in commands(file)
        assert address in (ROOT / file).read_text(encoding="utf-8")


def test_mistakes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cuda_graphs: the device is cpu" in failure(capsys, "demo", "--cuda-graphs")
    assert "no-such-model" in failure(capsys, "demo", "--model", "./no-such-model")
    monkeypatch.setattr("showo.commands.demo.find_spec", lambda name: None)
    assert "showo_ext[demo]" in failure(capsys, "demo")
