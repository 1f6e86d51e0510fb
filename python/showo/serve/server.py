"""The application under uvicorn: slow clients, the port, and an end that lets what runs be finished."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from showo.errors import UserError
from showo.serve.errors import ApiError
from showo.serve.limits import Limits
from showo.serve.serving import Serving

_LAST_SECONDS = 5  # for answers to be written, after the engine was closed


class Server(uvicorn.Server):
    """The first SIGTERM or Ctrl-C lets requests be finished for some seconds, and refuses new ones; the second ends
    the server at once. Either way `run` returns, with the engine closed.
    """

    def __init__(self, app: FastAPI) -> None:
        self.serving: Serving = app.state.serving
        super().__init__(_Config(app, self.serving.limits))
        self._until: float | None = None

    def stop(self) -> None:
        """What a first signal does; from any thread."""
        self._until = time.monotonic() + self.serving.limits.stop_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not remembered, as uvicorn does, which would raise the signal once more at its end.
        if self._until is None:
            self.stop()
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._until is not None:
            self.serving.stopping = True
            if self.serving.active == 0 or time.monotonic() > self._until:
                await asyncio.to_thread(self.serving.engine.close)
                self.should_exit = True
        return await super().on_tick(counter)


class _Config(uvicorn.Config):
    def __init__(self, app: FastAPI, limits: Limits) -> None:
        self.limits = limits
        super().__init__(
            app,
            http=_TimedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )


class _TimedProtocol(H11Protocol):
    """One connection. Headers that do not come, and answers that are not read, do not keep it open for ever."""

    config: _Config
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.config.limits.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _time_head(self) -> None:
        """Lets the time run while headers are awaited: it does not begin anew with each of their bytes."""
        awaited = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if awaited and self._head is None:
            self._head = self.loop.call_later(self.config.limits.head_seconds, self._give_up)
        elif not awaited and self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        seconds = self.config.limits.head_seconds
        error = ApiError(408, f"the headers took more than {seconds:g} seconds", code="too_slow")
        body = json.dumps(error.body).encode()
        head = f"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. port: 0 takes any that is free. UserError where that cannot be."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can connect."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
