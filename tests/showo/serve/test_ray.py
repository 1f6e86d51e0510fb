"""examples/serve_ray.py with two replicas, one of which is killed while it draws."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from showo.engine.pipeline import ShowoPipeline
from tests.showo.serve.test_http import differ

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; make test-ray does it"),
]
ROOT = Path(__file__).parents[3]
REPLICA = b"ray::ServeReplica"


def children(of: int) -> list[int]:
    """Processes below one, of any depth."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    below = [process for process, parent in parents.items() if parent == of]
    return below + [deeper for child in below for deeper in children(child)]


def replicas(of: int) -> set[int]:
    found = set()
    for process in children(of):
        try:
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(REPLICA):
                found.add(process)
        except OSError:
            continue
    return found


@pytest.fixture
def started(checkpoint: Path, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The process and the URL of the example."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "serve_ray.py"), "--replicas", "2", "--port", str(port)]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            [*command, "--model", str(checkpoint), "--name", "small"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if " at http" in line), "")
        assert line, (tmp_path / "errors").read_text()[-2000:]
        yield process.pid, line.split()[2]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_replica_is_killed(started: tuple[int, str], checkpoint: Path) -> None:
    process, url = started
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    with httpx.Client(timeout=120, trust_env=False) as http, ThreadPoolExecutor(8) as clients:

        def draw(seed: int) -> httpx.Response:
            return http.post(f"{url}/images/generations", json={"prompt": "a", "steps": 40, "seed": seed})

        def check(seed: int, answer: httpx.Response) -> None:
            (expected,) = pipe.generate("a", steps=40, seed=seed)
            assert differ(answer.json()["data"][0]["b64_json"], expected) <= 1

        before = replicas(process)
        assert len(before) == 2
        drawing = {seed: clients.submit(draw, seed) for seed in range(32)}
        while not sum(future.done() for future in drawing.values()) >= 4:
            time.sleep(0.01)
        killed = before.pop()
        os.kill(killed, signal.SIGKILL)
        answers = {seed: future.result() for seed, future in drawing.items()}
        lost = [seed for seed, answer in answers.items() if answer.status_code != 200]
        print(f"{len(lost)} of 32 requests were lost with replica {killed}")
        assert all(answers[seed].status_code >= 500 for seed in lost)
        assert len(lost) < 24  # 8 at a time: those that the dead replica was at, and no more than a few after them
        for seed, answer in answers.items():
            if seed not in lost:
                check(seed, answer)
        for seed in range(32, 36):  # the other one goes on
            answer = draw(seed)
            assert answer.status_code == 200
            check(seed, answer)
        deadline = time.monotonic() + 60
        while len(now := replicas(process)) < 2:
            assert time.monotonic() < deadline, "no replica in place of the dead one"
            time.sleep(0.1)
        assert killed not in now
        assert before <= now
