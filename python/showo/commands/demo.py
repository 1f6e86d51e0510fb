"""showo demo, and then http://127.0.0.1:7860 in a browser"""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say
from showo.errors import UserError


@common.grouped
def demo(
    *,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; on 0.0.0.0 everybody in the network can use the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 7860,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=1, help="Requests that may wait.")] = 64,
    models: common.AnsweringModelOptions,
) -> None:
    """Serve a page to draw, inpaint, extend, vary and ask in a browser, until Ctrl-C."""
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'showo_ext[demo]'")
    common.load_torch()
    common.begin(models.threads)
    pipe = models.load(deferred=False)

    from showo.engine.batching import Engine
    from showo.serve.page.app import served_page

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Engine(pipe, max_waiting=max_waiting) as engine, served_page(engine, host, port) as address:
        say(f"the page is at {address} until Ctrl-C")
        stopped.wait()
