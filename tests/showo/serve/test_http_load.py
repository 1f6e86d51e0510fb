"""Many clients, many requests, and what goes wrong inside: nobody is lost, nothing is kept, and the server says so."""

from __future__ import annotations

import gc
import json
import random
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from showo.engine.pipeline import ShowoPipeline
from showo.serve.limits import Limits
from tests.showo.batching.requests import held, kill
from tests.showo.serve.conftest import KEY, Running, running
from tests.showo.serve.test_http import about, differ, noise, png

DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
LIMITS = Limits(body_bytes=2**20, held_bytes=3 * 2**19, read_seconds=0.5)


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Running]:
    with running(checkpoint, LIMITS, total_seconds=60.0) as server:
        yield server


def metrics(http: httpx.Client) -> dict[str, float]:
    """Values by name and labels."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def ask(http: httpx.Client, number: int) -> str:
    """One of several small requests; the answer's text or picture in base64."""
    kind = number % 3
    if kind == 0:
        answer = http.post(DRAW, json={"prompt": "a", "steps": 2, "seed": number})
    elif kind == 1:
        file = png(noise(number, mode="RGBA"))
        answer = http.post(EDIT, data={"prompt": "b", "steps": "2", "seed": str(number)}, files={"image": file})
    else:
        answer = http.post(CHAT, json={"messages": [about("c", noise(number))], "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"] if kind == 2 else answer.json()["data"][0]["b64_json"]


def test_fifty_clients(served: Running) -> None:
    """Each gets what it asked for, at whatever time the others ask."""
    first = random.SystemRandom().randrange(2**20)
    print(f"first number {first}")
    with served.http(limits=httpx.Limits(max_connections=50)) as http, ThreadPoolExecutor(50) as clients:
        before = metrics(http)
        answers = list(clients.map(lambda number: ask(http, number), range(first, first + 50)))
        after = metrics(http)
    for number, answer in zip(range(first, first + 50), answers, strict=True):
        if number % 3 == 0:
            (expected,) = served.pipe.generate("a", steps=2, seed=number)
            assert differ(answer, expected) <= 1
        elif number % 3 == 2:
            assert answer == served.pipe.describe([noise(number)], "c", max_new_tokens=3)[0]
    assert after["showo_requests_total done"] - before["showo_requests_total done"] == 50
    assert after["showo_requests_waiting"] == after["showo_requests_running"] == 0
    counted = sum(after[f"showo_http_requests_total {path} 200"] for path in (DRAW, EDIT, CHAT))
    assert counted == 50
    assert after["showo_pictures_total"] - before.get("showo_pictures_total", 0) == sum(
        number % 3 != 2 for number in range(first, first + 50)
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grown(served: Running, warm: int, counted: int) -> int:
    """Bytes by which the process has grown after `counted` requests more than `warm`."""
    with served.http() as http:
        for number in range(warm + counted):
            if number == warm:
                gc.collect()
                before = resident()
            ask(http, number)
    gc.collect()
    return resident() - before


def test_memory_stays(served: Running) -> None:
    assert grown(served, 30, 40) < 8 * 2**20
    assert served.server.serving._held == 0


@pytest.mark.soak
def test_memory_stays_over_a_thousand_requests(served: Running) -> None:
    assert grown(served, 200, 1000) < 16 * 2**20


def test_bytes_of_all_requests_together(served: Running) -> None:
    """A second large body is refused while a first one is held; then there is room again."""
    large = {"prompt": "a" * 10**6}
    text = json.dumps(large).encode()
    head = f"POST {DRAW} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(served.address) as first, served.http() as http:
        first.sendall(head.encode() + f"Content-Length: {len(text)}\r\n\r\n".encode() + text[:-1])
        deadline = time.monotonic() + 10
        while served.server.serving._held < len(text) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = http.post(DRAW, json=large)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_bytes"
        first.sendall(text[-1:])
        assert first.recv(100).startswith(b"HTTP/1.1 400")
        assert http.post(DRAW, json=large).status_code == 400


def test_an_answer_that_nobody_reads(served: Running) -> None:
    """The connection is closed when its buffers are full and time is up."""
    asked = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(served.address)
        reader.setblocking(False)
        for _ in range(2000):  # as many answers as fill every buffer between here and there
            try:
                reader.send(asked)
            except OSError:
                break
        deadline = time.monotonic() + 30
        while served.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with served.http() as http:
        assert http.get("/health").status_code == 200


def test_deadlines(checkpoint: Path) -> None:
    with running(checkpoint, total_seconds=0.05) as late, late.http() as http:
        answer = http.post(DRAW, json={"prompt": "a", "steps": 1000})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline"
        streamed = http.post(DRAW, json={"prompt": "a", "steps": 1000, "stream": True})
        assert streamed.status_code == 504 or streamed.text.startswith("event: error\n")
        assert "deadline" in streamed.text


def test_a_stop_that_does_not_wait(checkpoint: Path) -> None:
    """What is not done in time gets 503, and the server ends."""
    with (
        running(checkpoint, Limits(stop_seconds=0.1)) as ending,
        ending.http() as http,
        ThreadPoolExecutor() as clients,
    ):
        drawing = [clients.submit(http.post, DRAW, json={"prompt": "a", "steps": 1000}) for _ in range(3)]
        while ending.server.serving.active < 3:
            time.sleep(0.01)
        ending.server.stop()
        for answer in (each.result() for each in drawing):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "stopping"


def test_an_engine_that_died(checkpoint: Path) -> None:
    """Nobody waits for it: neither who has asked, nor who asks later, nor who asks how the server is."""
    with running(checkpoint) as dead, dead.http() as http, ThreadPoolExecutor() as clients:
        drawing = clients.submit(http.post, DRAW, json={"prompt": "a", "steps": 1000})
        while dead.engine.facts().running == 0:
            time.sleep(0.01)
        kill(dead.engine._thread)
        asked = drawing.result(), http.post(DRAW, json={"prompt": "a"}), http.get("/health")
        for answer in asked:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_dead"
            assert "the engine's thread has ended: SystemExit" in answer.json()["error"]["message"]


def test_a_step_that_hangs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says so, and goes on when the step ends after all."""
    with running(checkpoint) as stuck, stuck.http() as http, ThreadPoolExecutor() as clients:
        go_on = held(stuck.engine.pipe, monkeypatch)
        drawing = clients.submit(http.post, DRAW, json={"prompt": "a", "steps": 2})
        while metrics(http)["showo_running_step_seconds"] == 0:
            time.sleep(0.01)
        assert http.get("/health").status_code == 200
        stuck.engine.step_seconds = 0.0
        talk = {"messages": [about("c", noise(1))]}
        for answer in (http.get("/health"), http.post(DRAW, json={"prompt": "a"}), http.post(CHAT, json=talk)):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_stuck"
            assert "Retry-After" in answer.headers
        go_on.set()
        assert drawing.result().status_code == 200
        assert http.get("/health").status_code == 200
        assert metrics(http)["showo_running_step_seconds"] == 0


def test_steps_that_fail(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears that it was the server; the next request is answered."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    with served.http() as http:
        with monkeypatch.context() as patch:
            patch.setattr(ShowoPipeline, "decode", fail)
            answer = http.post(DRAW, json={"prompt": "a", "steps": 1})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_failed"
        with monkeypatch.context() as patch:
            patch.setattr("showo.serve.images.encode", fail)
            answer = http.post(DRAW, json={"prompt": "a", "steps": 1})
            streamed = http.post(DRAW, json={"prompt": "a", "steps": 1, "stream": True})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert answer.headers["connection"] == "close"  # the server does close it
        assert "planted" not in answer.text
        assert streamed.text.startswith("event: error\n")
        assert "internal_error" in streamed.text
        assert http.post(DRAW, json={"prompt": "a", "steps": 1}).status_code == 200
