"""docs/serving.md: its commands run against the server that it starts, and its tables name what there is."""

from __future__ import annotations

import inspect
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from showo.commands.serve import serve
from showo.engine.batching.engine import default_rows
from showo.engine.batching.requests import MAX_CHARACTERS
from showo.engine.sampling import MAX_STEPS
from showo.serve.limits import Limits
from showo.serve.schemas import MAX_DIRECTIONS, AskedChat, AskedEdits, AskedPictures, AskedVariations
from tests.ports import free_port
from tests.showo.command import started

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
START, CURL, RAY = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """The server, started as the page says, at another port."""
    number = str(free_port())
    install, start = START.replace("8000", number).splitlines()
    assert install == "pip install 'showo_ext[serve]'"
    showo, *arguments = shlex.split(start)
    assert showo == "showo"
    with started(*arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"showo-tiny at http://127.0.0.1:{number}/v1\n"
        yield number
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_commands(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    exec(compile(PYTHON.replace("8000", port), "serving.md", "exec"), {})
    assert capsys.readouterr().out == re.findall(r"  # (.*)", PYTHON)[0]
    with Image.open("apple.png") as apple:
        assert apple.size == (64, 64)
        mask = apple.convert("RGBA")
    mask.putalpha(Image.linear_gradient("L").resize(mask.size).point(lambda level: 255 * (level > 127)))
    mask.save("mask.png")
    for line in CURL.replace("8000", port).splitlines():
        said = subprocess.run(shlex.split(line), check=True, capture_output=True, text=True).stdout
        if line.endswith("/health"):
            assert '"status":"ok"' in said
        if line.endswith("/metrics"):
            named = re.findall(r"`(showo_\w+|process_)", PAGE.partition("## Metrics")[2])
            assert len(named) > 10
            assert all(name in said for name in named)
    assert '"seed":1' in Path("answer.json").read_text()
    events = re.findall(r"^event: (.*)$", Path("events.txt").read_text(), re.MULTILINE)
    assert events[-1] == "image_edit.completed"
    assert '"size":"96x64"' in Path("wider.json").read_text()
    assert '"b64_json":' in Path("variation.json").read_text()


def test_the_limits() -> None:
    limits = Limits()
    promised = {
        f"headers that take more than {limits.head_seconds:g} seconds",
        f"a body that takes more than {limits.body_seconds:g}",
        f"{limits.pictures} pictures a request, {MAX_STEPS:,} steps, {MAX_CHARACTERS:,} characters of a text, "
        f"{limits.picture_pixels / 2**20:g} megapixels",
        f"{limits.grown_pixels / 2**20:g} megapixels of one that is drawn on, {MAX_DIRECTIONS} directions",
        f"{limits.connections} connections, {limits.read_seconds:g} seconds",
        f"`--max-body`, {limits.body_bytes / 2**20:g} MiB",
        f"it holds {limits.held_bytes / 2**20:g} MiB",
    }
    options = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
    promised |= {
        f"wait already, {options['max_waiting']}",
        f"is {default_rows(torch.device('cpu'))} on a CPU",
        f"and {default_rows(torch.device('cuda'))} on a GPU",
        f"`--max-answers` of them, {options['max_answers']}",
        f"`--queue-timeout`, {options['queue_timeout']:g} seconds",
        f"`--timeout`, {options['timeout']:g}",
        f"`--step-timeout`, {options['step_timeout']:g} seconds",
    }
    assert options["max_body"] == limits.body_bytes
    assert options["stop_timeout"] == limits.stop_seconds
    assert not [text for text in promised if text not in PAGE]


def test_the_fields() -> None:
    """Those of the table are those that there are, but for the ones that must ask for nothing."""
    told = {
        endpoint: set(re.findall(r"`(\w+)`", fields))
        for endpoint, fields in re.findall(r"^\| `POST (/v1/[\w/]+)` \| (.*) \|$", PAGE, re.MULTILINE)
    }
    assert told["/v1/images/generations"] <= set(AskedPictures.model_fields)
    assert told["/v1/images/edits"] == {"image", "mask", "blend", "extend", "extend_by", "extend_prompts"}
    variations = {"image", "n", "size", "response_format", "model", "share", "other"}
    assert told["/v1/images/variations"] == variations
    assert variations - {"image", "other"} <= set(AskedVariations.model_fields)
    assert told["/v1/chat/completions"] <= set(AskedChat.model_fields)
    left = set(AskedPictures.model_fields) - told["/v1/images/generations"]
    assert left == {"response_format", "quality", "background", "moderation"}
    own = told["/v1/images/edits"] - {"image", "mask"} | {"input_fidelity"}
    assert set(AskedEdits.model_fields) - set(AskedPictures.model_fields) == own
    assert set(AskedVariations.model_fields) - set(AskedPictures.model_fields) == {"share"}


def test_replicas() -> None:
    install, start = RAY.splitlines()
    assert install == "pip install 'showo_ext[ray]'"
    assert (ROOT / shlex.split(start)[1]).is_file()  # and tested by test_ray, which `make test-ray` runs
    assert "\nray = [" in (ROOT / "pyproject.toml").read_text()
    assert "\ntest-ray:" in (ROOT / "Makefile").read_text()
