"""Server-sent events: a response that comes in pieces."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from showo.serve.errors import api_error

_log = logging.getLogger(__name__)
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: for proxies that would collect them


def frame(data: dict[str, Any]) -> str:
    """One event; its name, where `data` has a type, is that."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n"


def stream(frames: AsyncIterator[str]) -> StreamingResponse:
    """An error on the way becomes the last event, as the status is sent already."""
    return StreamingResponse(_told(frames), media_type="text/event-stream", headers=_HEADERS)


async def _told(frames: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for piece in frames:
            yield piece
    except Exception as error:
        told = api_error(error)
        yield f"event: error\ndata: {json.dumps(told.body)}\n\n"
        if told.status_code == 500:
            _log.error("a response ended early", exc_info=error)
