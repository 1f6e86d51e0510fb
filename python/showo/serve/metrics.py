"""GET /metrics: what the engine and the server do and have done, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from showo.engine.batching import Engine

router = APIRouter()
_OUTCOMES = ("done", "refused", "cancelled", "late", "failed")
_GAUGES = {
    "waiting": ("showo_requests_waiting", "Requests to the engine that have not begun."),
    "running": ("showo_requests_running", "Requests that the engine is at."),
    "rows": ("showo_batch_rows", "Rows of the batches that are being computed."),
    "running_step_seconds": (
        "showo_running_step_seconds",
        "Seconds since the step that runs now began; 0 between steps.",
    ),
    "cache_bytes": ("showo_cache_bytes", "Bytes of keys and values that are held, also by CUDA graphs."),
}
_COUNTERS = {
    "pictures": ("showo_pictures", "Pictures drawn."),
    "tokens": ("showo_tokens", "Tokens of answers drawn."),
    "steps": ("showo_steps", "Forward passes of the model."),
    "busy_seconds": ("showo_busy_seconds", "Seconds in which the engine computed."),
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class EngineCollector:
    """The engine's facts at the moment at which they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        facts = self._engine.facts()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, getattr(facts, field))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, getattr(facts, field))
        requests = CounterMetricFamily(
            "showo_requests", "Requests to the engine, by how they ended.", labels=["outcome"]
        )
        for outcome in _OUTCOMES:
            requests.add_metric([outcome], getattr(facts, outcome))
        yield requests


class Measured:
    """ASGI middleware that counts requests and their seconds, by path and status.

    A path that is none of the server's counts as "other", so that nobody can make it keep names. A client that left
    before its answer began has status 499.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, paths: frozenset[str]) -> None:
        self.app, self._paths = app, paths
        self._count = Counter("showo_http_requests", "HTTP requests.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "showo_http_seconds", "Seconds to an answer's end.", ["path"], registry=registry, buckets=_SECONDS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 499, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:  # becomes an answer further out
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._count.labels(path, str(status)).inc()
            self._seconds.labels(path).observe(time.perf_counter() - begun)


def registry_of(engine: Engine) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    ProcessCollector(registry=registry)
    return registry


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
