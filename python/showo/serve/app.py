"""The server's endpoints as one ASGI application, for uvicorn or any other server."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, FastAPI

from showo.engine.batching import Engine
from showo.serve import chat, images, metrics
from showo.serve.errors import answer_errors
from showo.serve.guard import Guard
from showo.serve.limits import Limits
from showo.serve.serving import Serving, ThisVisit

router = APIRouter()
_BEGUN = int(time.time())


def create_app(engine: Engine, name: str, *, limits: Limits | None = None, key: str | None = None) -> FastAPI:
    """An application on an engine, which stays its maker's.

    name: what clients call the model. key: what they must send as `Authorization: Bearer KEY`; None lets everybody in.
    `app.state.serving` is told to stop by `stopping = True`.
    """
    app = FastAPI(title="showo", docs_url=None, redoc_url=None)  # the pages would load scripts from elsewhere
    app.state.serving = Serving(engine, name, limits or Limits(), key)
    app.state.registry = metrics.registry_of(engine)
    answer_errors(app)
    routers = (router, images.router, chat.router, metrics.router)
    for each in routers:
        app.include_router(each)
    paths = frozenset(route.path for each in routers for route in each.routes)  # type: ignore[attr-defined]
    app.add_middleware(Guard, serving=app.state.serving)
    app.add_middleware(metrics.Measured, registry=app.state.registry, paths=paths)
    return app


@router.get("/health")
async def health(visit: ThisVisit) -> dict[str, Any]:
    """An error, as requests would get it, where the engine answers none any more."""
    visit.serving.engine.check_open()
    facts = visit.serving.engine.facts()
    return {"status": "ok", "model": visit.serving.name, "waiting": facts.waiting, "running": facts.running}


@router.get("/v1/models")
async def models(visit: ThisVisit) -> dict[str, Any]:
    return {"object": "list", "data": [_model(visit.serving.name)]}


@router.get("/v1/models/{model:path}")
async def model(model: str, visit: ThisVisit) -> dict[str, Any]:
    visit.serving.check_model(model)
    return _model(visit.serving.name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _BEGUN, "owned_by": "showo"}
