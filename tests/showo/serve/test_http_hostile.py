"""What nobody should send: each gets an error with a reason, and the server goes on."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from showo.serve.limits import Limits
from showo.serve.schemas import Asked, AskedChat, AskedEdits, AskedPictures
from tests.showo.serve.conftest import KEY, Running, running
from tests.showo.serve.test_http import about, noise, png

DRAW = "/v1/images/generations"
EDIT = "/v1/images/edits"
VARY = "/v1/images/variations"
CHAT = "/v1/chat/completions"
LIMITS = Limits(
    body_bytes=2**20, held_bytes=2**21, head_seconds=0.5, body_seconds=0.5, read_seconds=0.5, picture_pixels=2**20
)


@pytest.fixture(scope="module")
def strict(checkpoint: Path) -> Iterator[Running]:
    with running(checkpoint, LIMITS, max_waiting=4, total_seconds=30.0) as server:
        yield server


@pytest.fixture(scope="module")
def http(strict: Running) -> Iterator[httpx.Client]:
    with strict.http() as client:
        yield client


@pytest.fixture(autouse=True)
def lives(strict: Running, http: httpx.Client) -> Iterator[None]:
    """After each test the server is idle, holds nothing, and draws."""
    yield
    serving = strict.server.serving
    deadline = time.monotonic() + 20
    while serving.active or strict.engine.facts().running or strict.engine.facts().waiting:
        assert time.monotonic() < deadline, strict.engine.facts()
        time.sleep(0.01)
    assert serving._held == 0
    assert http.post(DRAW, json={"prompt": "a", "steps": 1}).status_code == 200


def reason(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 600
    assert "Traceback" not in error["message"]
    return error


def bomb(side: int) -> bytes:
    """A small PNG file of side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (side * (side + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "prompt", "Field required"),
        ({"prompt": "a", "promt": "b"}, "promt", "Unknown parameter"),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": ["a"]}, "prompt", "string"),
        ({"prompt": "a", "n": 0}, "n", "greater"),
        ({"prompt": "a", "n": 11}, "n", "at most 10"),
        ({"prompt": "a", "n": "2"}, "n", "integer"),
        ({"prompt": "a", "seed": 2**70}, "seed", "less"),
        ({"prompt": "a", "steps": 10_000}, None, "steps must be at least 1 and at most 1000"),
        ({"prompt": "a", "steps": 0}, "steps", "greater"),
        ({"prompt": "a", "size": "99999x99999"}, None, "multiples"),
        ({"prompt": "a", "size": "99996x99996"}, None, "positions"),
        ({"prompt": "a", "size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "guidance": float("nan")}, "guidance", "finite"),
        ({"prompt": "a", "guidance": -1}, "guidance", "greater"),
        ({"prompt": "a", "sampler": "../../etc/passwd"}, None, "sampler"),
        ({"prompt": "a", "schedule": "pow1e999"}, None, "schedule"),
        ({"prompt": "a", "temperature": 1e400}, "temperature", "finite"),
        ({"prompt": "a", "background": "transparent"}, "background", "opaque"),
        ({"prompt": "a", "partial_images": 2}, "partial_images", "stream"),
        ({"prompt": "a", "n": 2, "stream": True}, "n", "one at a time"),
        ({"prompt": "\ud800"}, None, "UTF-8"),
        ({"prompt": "word " * 100}, None, "tokens"),
        ({"prompt": "a", "also": [{"text": "word " * 100, "weight": 1}]}, None, "also has"),
        ({"prompt": "a", "also": [{"text": "b", "weight": 1}] * 8}, None, "at most 8 can be composed"),
        ({"prompt": "a", "also": [{"text": "b", "weight": 1e31}]}, None, "weight must be"),
        ({"prompt": "a", "also": [{"text": "b", "weight": float("nan")}]}, "also[0].weight", "finite"),
        ({"prompt": "a", "also": [{"text": "b"}]}, "also[0].weight", "required"),
        ({"prompt": "a", "also": [{"text": "b", "weight": 1, "x": 1}]}, "also[0].x", "Unknown"),
        ({"prompt": "a", "also": "b"}, "also", "list"),
        ({"prompt": "a", "also": [0] * 300_000}, "also[0]", "dictionary"),
        ({"prompt": "a" * 900_000}, None, "900000 characters"),
        ({"prompt": "a", "negative_prompt": "a" * 900_000}, None, "900000 characters"),
        ({"prompt": "a", "sampler": "a" * 900_000}, None, "sampler"),
        ({"prompt": "a", "b" * 900_000: 1}, "b" * 500 + "...", "Unknown parameter: bbb"),
    ],
)
def test_senseless_pictures(http: httpx.Client, body: dict[str, Any], param: str | None, said: str) -> None:
    error = reason(http.post(DRAW, content=json.dumps(body), headers={"Content-Type": "application/json"}), 400)
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON object"),
        (b"{", "no valid JSON"),
        (b'{"prompt": "\xff"}', "body"),
        (b"[" * 500_000, "body"),
        (b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}", "body"),
        (b'"prompt"', "JSON object"),
        (b"[]", "JSON object"),
    ],
)
def test_bodies_that_are_no_json(http: httpx.Client, body: bytes, said: str) -> None:
    assert said in reason(http.post(DRAW, content=body, headers={"Content-Type": "application/json"}), 400)["message"]


def test_json_that_says_it_is_none(http: httpx.Client) -> None:
    """A page in a browser can make it send no other kind without being asked."""
    answer = http.post(DRAW, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert "application/json" in reason(answer, 400)["message"]


def test_pages_of_others(http: httpx.Client) -> None:
    """A form on a page can post to any address without being asked; browsers say where it comes from."""
    files = {"image": png(noise(1, mode="RGBA"))}
    for origin in ("https://example.org", "null"):
        answer = http.post(EDIT, data={"prompt": "a"}, files=files, headers={"Origin": origin})
        assert reason(answer, 403)["code"] == "from_a_page"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages"),
        ([{"role": "system", "content": "a"}], "messages[0].role"),
        ([{"role": "assistant", "content": "a"}], "in turn"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "last one"),
        ([0], "messages[0]"),
        ([{"role": "user", "content": ""}], "empty"),
        ([{"role": "user", "content": "a" * 900_000}], "900000 characters"),
        ([{"role": "user", "content": "a" * 3000}], "positions"),
        ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "a" * 900_000}]}], "messages[0].content"),
    ],
)
def test_senseless_talks(http: httpx.Client, messages: list[Any], said: str) -> None:
    assert said in reason(http.post(CHAT, json={"messages": messages}), 400)["message"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (AskedPictures, {"prompt": "a", "also": [0] * 1000}),
        (AskedEdits, {"prompt": "a", "extend": ["up"] * 60, "extend_prompts": [0] * 60}),
        (AskedChat, {"messages": [0] * 1000}),
        (AskedChat, {"messages": [{"role": "user", "content": [0] * 1000}]}),
        (AskedChat, {"messages": [{"role": "user", "content": "a"}], "modalities": [0] * 1000}),
    ],
)
def test_faults_of_long_lists_are_not_collected(kind: type[Asked], body: dict[str, Any]) -> None:
    """A body holds millions of them, each of which would become an object."""
    with pytest.raises(ValidationError) as error:
        kind.model_validate(body)
    assert error.value.error_count() <= 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1/picture.png", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("/etc/passwd", "not fetched"),
        ("../../picture.png", "not fetched"),
        ("data:text/html;base64,AAAA", "not fetched"),
        ("data:image/png,AAAA", "not fetched"),
        ("", "not fetched"),
        ("data:image/png;base64,***", "base64"),
        ("data:image/png;base64,AAAA", "readable picture"),
    ],
)
def test_pictures_that_are_none(http: httpx.Client, url: str, said: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert said in reason(http.post(CHAT, json=body), 400)["message"]


def test_bombs(http: httpx.Client) -> None:
    """Files of a few kilobytes that would take a megapixel and more, some of them gigabytes."""
    for side in (1025, 5000):
        file = bomb(side)
        assert len(file) < 50_000
        small = png(noise(1, mode="RGBA"))
        for files, name in (({"image": file, "mask": small}, "image"), ({"image": small, "mask": file}, "mask")):
            answer = http.post(EDIT, data={"prompt": "a"}, files=files)
            assert f"{name}: {side}x{side} pixels, more than 1048576" in reason(answer, 400)["message"]
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file).decode()}}
        answer = http.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
        assert f"picture 1: {side}x{side} pixels, more than 1048576" in reason(answer, 400)["message"]


def test_forms(http: httpx.Client) -> None:
    whole = png(noise(1, mode="RGBA"))
    name = "../../../tmp/showo-escaped.png"
    assert http.post(EDIT, data={"prompt": "a", "steps": "1"}, files={"image": (name, whole)}).status_code == 200
    assert not Path("/tmp/showo-escaped.png").exists()
    for data, files, said in (
        ({}, {"image": whole}, "prompt"),
        ({"prompt": "a"}, {"mask": whole}, "image: is missing"),
        ({"prompt": "a"}, {"image": png(noise(1))}, "no transparent pixels"),
        ({"prompt": "a"}, {"image": whole, "mask": png(noise(1, (8, 8), "RGBA"))}, "8x8"),
        ({"prompt": "a"}, {"image": whole, "prompt": whole}, "prompt: expected no file"),
        ({"prompt": "a"}, {"image": b"not a picture"}, "readable"),
        ({"prompt": "a", "image": "picture.png"}, {"mask": whole}, "image: expected a file"),
        ({"prompt": "a", "steps": "10000"}, {"image": whole}, "1000"),
        ({"prompt": "a", "steps": "1.5"}, {"image": whole}, "steps"),
        ({"prompt": "a" * 300_000}, {"image": whole}, "size"),
        ({"prompt": "a", **{f"f{n}": "b" for n in range(300)}}, {"image": whole}, "fields"),
        ({"prompt": "a", "also": "b=1"}, {"image": whole}, "also: expected JSON"),
        ({"prompt": "a", "also": "[" * 100_000}, {"image": whole}, "also: expected JSON"),
        ({"prompt": "a", "also[][text]": ["b", "c"], "also[][weight]": "1"}, {"image": whole}, "as many"),
        ({"prompt": "a", "also[][text]": "b"}, {"image": whole}, "also[0].weight"),
        ({"prompt": "a", "also": "[]", "also[][text]": "b"}, {"image": whole}, "also: is given twice"),
        ({"prompt": ["a", "b"]}, {"image": whole}, "prompt: is given twice"),
        ({"prompt": "a", "extend": "back"}, {"image": whole}, "extend[0]: Input should be 'left', 'right', 'up'"),
        ({"prompt": "a", "extend": ["up"] * 65}, {"image": whole}, "at most 64"),
        ({"prompt": "a", "extend": "up", "extend_by": "4"}, {"image": whole}, "by must be 1 to 3"),
        ({"prompt": "a", "extend": "up", "extend_prompts": ["a", "b"]}, {"image": whole}, "prompt must be one"),
        ({"prompt": "a", "extend_by": "1"}, {"image": whole}, "extend_by: needs extend"),
        ({"prompt": "a", "extend": "up", "size": "2048x2048"}, {"image": whole}, "2048x2056 pixels, more than 4194304"),
        ({"prompt": "a", "extend": "up", "size": "99996x99996"}, {"image": whole}, "more than 4194304"),
        ({"prompt": "a", "extend": "up"}, {"image": whole, "mask": whole}, "leave the mask out"),
    ):
        assert said in reason(http.post(EDIT, data=data, files=files), 400)["message"]
    for data, files, said in (
        ({}, {}, "multipart"),
        ({"share": "0"}, {"image": whole}, "share"),
        ({"share": "nan"}, {"image": whole}, "share"),
        ({"prompt": "word " * 100}, {"image": whole}, "tokens"),
        ({}, {"image": whole, "mask": whole}, "mask: expected no file"),
        ({}, {"image": whole, "other": bomb(1025)}, "other: 1025x1025 pixels"),
        ({}, {"image": whole, "other": b"not a picture"}, "other: not a readable"),
        ({"response_format": "url"}, {"image": whole}, "no URLs"),
    ):
        assert said in reason(http.post(VARY, data=data, files=files), 400)["message"]
    assert "multipart" in reason(http.post(EDIT, json={"prompt": "a"}), 400)["message"]
    broken = {"Content-Type": "multipart/form-data"}
    reason(http.post(EDIT, content=b"--x\r\n", headers=broken), 400)


def test_bodies_that_are_too_large(http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(40):
            yield b"a" * 2**16

    assert "at most 1048576" in reason(http.post(DRAW, content=b"a" * (3 * 2**20)), 413)["message"]
    kind = {"Content-Type": "application/json"}
    assert "at most 1048576" in reason(http.post(DRAW, content=pieces(), headers=kind), 413)["message"]


def test_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/", "/etc/passwd", "/..%2f..%2fetc/passwd", "/v1/images/../../etc/passwd", "/docs", "/v1/%00"):
        assert reason(http.get(path), 404)["code"] == "unknown_url"
    assert reason(http.get(DRAW), 405)["code"] == "method_not_allowed"
    assert reason(http.get("/v1/models/..%2f..%2fetc"), 404)["code"] == "model_not_found"


def test_keys(strict: Running) -> None:
    with strict.http(key=None) as client:
        for sent in (None, "", "Bearer", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"):
            headers = {} if sent is None else {"Authorization": sent}
            for path in (DRAW, "/metrics", "/v1/models", "/nowhere"):
                answer = client.post(path, headers=headers, content=b"a" * 10_000)
                assert reason(answer, 401)["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def raw(strict: Running) -> socket.socket:
    return socket.create_connection(strict.address, timeout=10)


def everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_slow_clients(strict: Running) -> None:
    """Headers that drip, a body that stops, and bytes that are no HTTP."""
    begun = time.monotonic()
    with raw(strict) as silent, raw(strict) as dripping, raw(strict) as stopping, raw(strict) as other:
        stopping.sendall(f"POST {DRAW} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n".encode())
        stopping.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        other.sendall(b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n")
        for byte in b"GET /health HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            try:
                dripping.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        for connection in (silent, dripping):
            assert b"408" in everything(connection).split(b"\r\n")[0]
        assert b"too_slow" in everything(stopping)
        assert everything(other).startswith(b"HTTP/1.1 400")
    assert time.monotonic() - begun < 10


def test_a_huge_header(strict: Running) -> None:
    with raw(strict) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert everything(connection).startswith(b"HTTP/1.1 400")


def test_clients_that_leave(strict: Running, http: httpx.Client) -> None:
    """Their places are free at once: while one is drawn, while it waits, and while it is streamed."""
    long = {"prompt": "a", "steps": 1000, "seed": 1}
    before = strict.engine.facts()
    for body in (long, {**long, "stream": True, "partial_images": 3}, {**long, "n": 2}):
        with raw(strict) as connection:
            text = json.dumps(body).encode()
            connection.sendall(
                f"POST {DRAW} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode()
                + text
            )
            deadline = time.monotonic() + 10
            while not strict.engine.facts().running:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        while strict.engine.facts().running or strict.engine.facts().waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    after = strict.engine.facts()
    assert after.cancelled - before.cancelled == 4
    assert after.done == before.done
    assert 'showo_http_requests_total{path="/v1/images/generations",status="499"}' in http.get("/metrics").text


def test_a_full_queue(strict: Running, http: httpx.Client) -> None:
    answer = http.post(DRAW, json={"prompt": "a", "steps": 1000, "n": 10})
    assert reason(answer, 429)["code"] == "queue_full"
    assert int(answer.headers["Retry-After"]) >= 1


def test_talks_about_pictures_in_the_wrong_place(http: httpx.Client) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, about("c", noise(1))]
    assert "first message" in reason(http.post(CHAT, json={"messages": turns}), 400)["message"]
    many = [about("c", *[noise(number) for number in range(30)])]
    assert "positions" in reason(http.post(CHAT, json={"messages": many}), 400)["message"]
