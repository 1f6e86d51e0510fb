"""The page's web server: what it lets in, and what it lets the browser do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from showo.engine.batching import Engine
from showo.errors import UserError
from showo.serve.page.page import build_page, style
from showo.serve.page.uploads import MAX_BYTES

# What the page in the browser asks for. Gradio has more: routes that fetch addresses, edit programs, keep records.
_API = "startup-events heartbeat/ queue/join queue/data cancel reset upload upload_progress component_server info"
_OPEN = (
    "/config",
    "/theme.css",
    "/assets/",
    "/static/",
    "/favicon.ico",
    "/manifest.json",
    "/gradio_api/file=/",
    *(f"/gradio_api/{name}" for name in (*_API.split(), "theme.css")),
)
_ROOM = 1024 * 1024  # of a request beside its file
# The browser fetches from here and nowhere else, whatever gradio's files, or a text on the page, may ask for.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


class Guard:
    """ASGI middleware: other paths than the page's are not there, bodies have a limit, answers have `_HEADERS`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] != "/" and not scope["path"].startswith(_OPEN):
            await PlainTextResponse("not here", 404)(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if not length.isdigit() or int(length) > MAX_BYTES + _ROOM:
                raise TooMuchError
            await self.app(scope, _limited(receive), _with_headers(send))
        except TooMuchError:  # before any answer, as answers come when the body is read
            await PlainTextResponse(f"more than {MAX_BYTES} bytes", 413)(scope, receive, send)


class TooMuchError(Exception):
    """The body of a request is longer than it may be."""


def _limited(receive: Any) -> Any:
    """`receive`, which counts bytes too: a body that comes in chunks does not announce its length."""
    taken = 0

    async def limited() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BYTES + _ROOM:
            raise TooMuchError
        return message

    return limited


def _with_headers(send: Any) -> Any:
    async def with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            given = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *given]}
        await send(message)

    return with_headers


@contextmanager
def served_page(engine: Engine, host: str, port: int) -> Iterator[str]:
    """Serves the page from a thread, until the end of the block. Gives its address.

    Files that browsers send, and pictures that they are shown, lie in a folder of their own, which goes at the end.

    Raises UserError where the port is taken, or the host is not an address of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="showo-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(engine)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                ssr_mode=False,
                quiet=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                max_file_size=MAX_BYTES,
                css=style(engine),
                app_kwargs={"middleware": [*_hosts(host), Middleware(Guard)], "docs_url": None, "redoc_url": None},
            )
        except OSError as error:
            raise UserError(f"cannot serve on {host} port {port}: {error}") from error
        try:
            yield page.local_url
        finally:
            page.close(verbose=False)


def _hosts(host: str) -> list[Middleware]:
    """On a loopback address, requests must be meant for it: a page from elsewhere may have its name lead here too."""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host])] if loopback else []
