"""A server on a free loopback port, in a thread of the tests' own process, with a small random model behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from showo.engine.batching import Engine
from showo.engine.pipeline import ShowoPipeline
from showo.serve.app import create_app
from showo.serve.limits import Limits
from showo.serve.server import Server, listen, url_of

KEY = "the-key-of-the-tests"
NAME = "small"


@dataclass(frozen=True)
class Running:
    """pipe: a second one with the same weights, for what the server should answer."""

    url: str
    address: tuple[str, int]
    engine: Engine
    server: Server
    pipe: ShowoPipeline

    def http(self, key: str | None = KEY, **options: object) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]

    def openai(self, **options: object) -> openai.OpenAI:
        client = httpx.Client(trust_env=False)
        settings = {"api_key": KEY, "max_retries": 0, "timeout": 60, "http_client": client, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)  # type: ignore[arg-type]


@contextmanager
def running(checkpoint: Path, limits: Limits | None = None, **options: object) -> Iterator[Running]:
    """options: of the engine."""
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    with Engine(pipe, **options) as engine, listen("127.0.0.1", 0) as sock:  # type: ignore[arg-type]
        server = Server(create_app(engine, NAME, limits=limits or Limits(), key=KEY))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(url_of(sock), sock.getsockname(), engine, server, ShowoPipeline.from_pretrained(checkpoint))
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Running]:
    with running(checkpoint) as server:
        yield server
