"""`showo serve` as a process: what it says, and how it ends."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from showo.serve.server import Server
from showo.serve.serving import Serving
from tests.showo.command import failure, run, started


def test_a_stop_lets_what_runs_be_finished(checkpoint: Path, tmp_path: Path) -> None:
    """SIGTERM: the picture that is drawn comes, a new request gets 503, and the code is 0."""
    (tmp_path / "key").write_text("secret-key\n")
    named = ("--key-file", tmp_path / "key", "--name", "small")
    with started("serve", "--port", "0", "--model", checkpoint, *named, "--threads", "1") as process:
        assert process.stdout is not None
        name, _, url = process.stdout.readline().split()
        assert name == "small"
        headers = {"Authorization": "Bearer secret-key"}
        with httpx.Client(headers=headers, timeout=60, trust_env=False) as http, ThreadPoolExecutor() as threads:
            drawing = threads.submit(http.post, f"{url}/images/generations", json={"prompt": "a", "steps": 300})
            health = url.removesuffix("/v1") + "/health"
            while http.get(health).json()["running"] == 0:
                assert not drawing.done()
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            while (answer := http.get(health)).status_code == 200:
                assert not drawing.done()
                time.sleep(0.02)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "stopping"
            assert "Retry-After" in answer.headers
            assert drawing.result().status_code == 200
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_options(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Serving] = []
    monkeypatch.setattr(Server, "run", lambda server, sockets: served.append(server.serving))
    limits = {"--max-rows": 3, "--max-answers": 4, "--max-waiting": 5}
    seconds = {"--queue-timeout": 6.5, "--timeout": 7.5, "--step-timeout": 8.5, "--stop-timeout": 9.5}
    given = [part for option in {**limits, **seconds}.items() for part in option]
    assert run("serve", "--port", 0, "--model", checkpoint, *given, "--max-body", 10, "--compile") == 0
    (serving,) = served
    engine = serving.engine
    assert (engine.max_rows, engine.max_answers, engine.max_waiting) == (3, 4, 5)
    assert (engine.queue_seconds, engine.total_seconds, engine.step_seconds) == (6.5, 7.5, 8.5)
    assert (serving.limits.stop_seconds, serving.limits.body_bytes) == (9.5, 10)
    assert engine.pipe.model.compiled  # when it is first wanted


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cuda_graphs: the device is cpu" in failure(capsys, "serve", "--port", "0", "--cuda-graphs")
    assert "no-such-host" in failure(capsys, "serve", "--host", "no-such-host.invalid")
    assert "No such file" in failure(capsys, "serve", "--key-file", tmp_path / "none")
    assert "stop_seconds" in failure(capsys, "serve", "--stop-timeout", "-1")
    monkeypatch.setenv("SHOWO_API_KEY", "with a space")
    assert "visible ASCII" in failure(capsys, "serve")
    (tmp_path / "key").write_text("key")
    assert "--key-file" in failure(capsys, "serve", "--key-file", tmp_path / "key")
