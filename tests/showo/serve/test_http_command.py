"""`showo serve` as a process: what it says, and how it ends."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.showo.command import failure, started


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


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no-such-host" in failure(capsys, "serve", "--host", "no-such-host.invalid")
    assert "No such file" in failure(capsys, "serve", "--key-file", tmp_path / "none")
    assert "stop_seconds" in failure(capsys, "serve", "--stop-timeout", "-1")
    monkeypatch.setenv("SHOWO_API_KEY", "with a space")
    assert "visible ASCII" in failure(capsys, "serve")
    (tmp_path / "key").write_text("key")
    assert "--key-file" in failure(capsys, "serve", "--key-file", tmp_path / "key")
