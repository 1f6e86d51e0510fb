"""examples/serve_ray.py with two replicas, one of which is killed while it draws, or can draw no more."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from showo.engine.pipeline import ShowoPipeline
from tests.ports import free_port
from tests.showo.command import ROOT, started
from tests.showo.serve.test_http import differ

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; make test-ray does it"),
]
REPLICA = b"ray::ServeReplica"
STEP_TIMEOUT = 5  # seconds: hundreds of times what a step takes here

# Read by every Python that starts below the example: a file named after a process and a fault brings it about there.
FAULTS = """
import os, pathlib, threading, time

folder = pathlib.Path(__file__).parent


def step(batch):
    if (folder / f"{os.getpid()}-dies").exists():
        raise SystemExit("planted")
    while True:
        time.sleep(1)


def watch():
    while not list(folder.glob(f"{os.getpid()}-*")):
        time.sleep(0.05)
    from showo.engine.batching.drawing import PictureBatch
    PictureBatch.step = step


threading.Thread(target=watch, daemon=True).start()
"""


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


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Example:
    """The example as a process, and a client of it. faults: the folder of FAULTS."""

    def __init__(self, process: int, url: str, faults: Path, pipe: ShowoPipeline) -> None:
        self.process, self.url, self.faults, self._pipe = process, url, faults, pipe
        self._http = httpx.Client(timeout=120, trust_env=False)

    def draw(self, seed: int) -> httpx.Response:
        asked = {"prompt": "a", "steps": 40, "seed": seed}
        return self._http.post(f"{self.url}/images/generations", json=asked)

    def check(self, seed: int, answer: httpx.Response) -> None:
        assert answer.status_code == 200
        (expected,) = self._pipe.generate("a", steps=40, seed=seed)
        assert differ(answer.json()["data"][0]["b64_json"], expected) <= 1


@pytest.fixture(scope="module")
def example(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    faults = tmp_path_factory.mktemp("faults")
    (faults / "sitecustomize.py").write_text(FAULTS)
    options = ("--replicas", 2, "--port", free_port(), "--model", checkpoint, "--name", "small")
    program = (ROOT / "examples" / "serve_ray.py",)
    with pytest.MonkeyPatch.context() as patch, open(faults / "errors", "w+") as errors:
        patch.setenv("PYTHONPATH", str(faults))
        patch.setenv("OMP_NUM_THREADS", "1")
        with started(*options, "--step-timeout", STEP_TIMEOUT, program=program, errors=errors) as process:
            assert process.stdout is not None
            line = next((line for line in process.stdout if " at http" in line), "")
            assert line, (faults / "errors").read_text()[-2000:]
            yield Example(process.pid, line.split()[2], faults, ShowoPipeline.from_pretrained(checkpoint))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_replica_is_killed(example: Example) -> None:
    with ThreadPoolExecutor(8) as clients:
        before = replicas(example.process)
        assert len(before) == 2
        drawing = {seed: clients.submit(example.draw, seed) for seed in range(32)}
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
            example.check(seed, answer)
    for seed in range(32, 36):  # the other one goes on
        example.check(seed, example.draw(seed))
    wait(lambda: len(replicas(example.process)) == 2, 60, "no replica in place of the dead one")
    now = replicas(example.process)
    assert killed not in now
    assert before <= now


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_an_engine_can_draw_no_more(example: Example, fault: str) -> None:
    """Its process lives on, and would answer 503 to half of all requests: Ray learns of it, and replaces it."""
    wait(lambda: len(replicas(example.process)) == 2, 60, "not two replicas")
    ill, well = replicas(example.process)
    (example.faults / f"{ill}-{fault}").touch()
    with ThreadPoolExecutor(8) as clients:
        drawing = [clients.submit(example.draw, seed) for seed in range(32)]
        wait(lambda: ill not in replicas(example.process), 90, "the ill replica stays")
        statuses = [future.result().status_code for future in drawing]
    assert set(statuses) <= {200, 500, 503}, statuses
    assert statuses.count(200) < 32  # it was asked
    wait(lambda: len(replicas(example.process)) == 2, 60, "no replica in place of the ill one")
    assert well in replicas(example.process)
    for seed in range(32, 40):
        example.check(seed, example.draw(seed))
