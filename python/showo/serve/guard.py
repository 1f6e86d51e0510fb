"""What stands between a client and the endpoints: the key, a body's size and time, clients that leave, the end."""

from __future__ import annotations

import asyncio
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from showo.serve.errors import CLOSE, ApiError, busy
from showo.serve.serving import VISIT, Serving, Visit

OPEN_PATHS = ("/health",)  # for which nobody needs a key
_DISCARD_SECONDS = 5.0


class Guard:
    """ASGI middleware. A client that leaves has its request cancelled, and its tickets with it.

    Bodies of requests that are refused are read and thrown away, within limits: a client that is still writing when
    its connection closes would never see the answer.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _discard(receive, self.serving.limits.body_bytes)
            await refused.response()(scope, receive, send)
            return
        visit = scope[VISIT] = Visit(self.serving)
        body = _Body(visit, receive)
        watcher = asyncio.ensure_future(body.cancel_if_left(asyncio.current_task()))
        try:
            await self.app(scope, body.receive, send)
        except asyncio.CancelledError:
            if not body.left.is_set():
                raise
        finally:
            watcher.cancel()
            visit.end()

    def _refused(self, scope: Scope) -> ApiError | None:
        if self.serving.stopping:
            return busy("the server is about to stop", "stopping")
        headers = dict(scope["headers"])
        if b"origin" in headers:  # else any page that somebody looks at could make this server draw
            return ApiError(403, "pages in a browser may not ask this server", code="from_a_page")
        if self.serving.key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"").partition(b" ")
            if given[0].lower() != b"bearer" or not hmac.compare_digest(given[2].strip(), self.serving.key.encode()):
                message = "the key is missing or wrong; expected the header Authorization: Bearer KEY"
                return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.serving.limits.body_bytes:
            return _too_large(self.serving.limits.body_bytes)
        return None


class _Body:
    """A request's body as it comes in, counted."""

    def __init__(self, visit: Visit, receive: Receive) -> None:
        self._visit, self._receive, self._limits = visit, receive, visit.serving.limits
        self._until = time.monotonic() + self._limits.body_seconds
        self._whole = asyncio.Event()
        self.left = asyncio.Event()
        self._bytes = 0

    async def receive(self) -> Message:
        """ASGI's receive. Raises ApiError for a body that is too large, too slow, or one too many."""
        if self._whole.is_set():
            await self.left.wait()
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except asyncio.TimeoutError:
            told = f"the body took more than {self._limits.body_seconds:g} seconds"
            raise ApiError(408, told, code="too_slow", headers=CLOSE) from None
        if message["type"] == "http.disconnect":
            self.left.set()
            return message
        count = len(message.get("body", b""))
        self._bytes += count
        if self._bytes > self._limits.body_bytes:
            await _discard(self._receive, self._limits.body_bytes)
            raise _too_large(self._limits.body_bytes)
        self._visit.hold(count)
        if not message.get("more_body", False):
            self._whole.set()
        return message

    async def cancel_if_left(self, task: asyncio.Task[None] | None) -> None:
        """Waits for the client to leave once its body is here, and then cancels what answers it."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left.set()
        assert task is not None
        task.cancel()


async def _discard(receive: Receive, limit: int) -> None:
    """Reads on to a body's end, for some bytes and seconds at most."""
    until, left = time.monotonic() + _DISCARD_SECONDS, 4 * limit
    while left > 0:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            return
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is too large: at most {limit} bytes are taken", code="too_large", headers=CLOSE)
