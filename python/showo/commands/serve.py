"""showo serve --port 8000"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say
from showo.errors import MissingDataError, UserError

BUNDLED_NAME = "showo-tiny"
_KEY_BYTES = 4096


@common.grouped
def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model.", show_default="the last part of --model"),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="File with the key that clients must send as a bearer token.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            envvar="SHOWO_API_KEY",
            help="The key itself; others see it in the list of processes.",
            show_default="anybody may ask",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of pictures drawn at a time; a picture takes two of them, or one without guidance.",
            show_default="4 on a CPU, else 16",
        ),
    ] = None,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers given at a time.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Pictures and answers that may wait.")] = 64,
    queue_timeout: Annotated[float, typer.Option(help="Seconds for which one may wait.")] = 300.0,
    timeout: Annotated[float, typer.Option(help="Seconds that one may take in all.")] = 600.0,
    step_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a step that has not ended makes /health answer 503.")
    ] = 600.0,
    stop_timeout: Annotated[float, typer.Option(help="Seconds to finish what runs when the server is stopped.")] = 30.0,
    max_body: Annotated[int, typer.Option(min=1, help="Most bytes of a request.")] = 16 * 1024 * 1024,
    models: common.AnsweringModelOptions,
) -> None:
    """Answer HTTP requests of OpenAI's shape: pictures of prompts, edits, and talks about pictures."""
    common.load_torch()
    try:
        from showo.serve.app import create_app
        from showo.serve.limits import Limits
        from showo.serve.server import Server, is_local, listen, url_of
    except ModuleNotFoundError as error:
        raise UserError(f"showo serve needs {error.name}: pip install 'showo_ext[serve]'") from error
    from showo.engine.batching import Engine

    secret = _secret(key, key_file)
    limits = Limits(body_bytes=max_body, stop_seconds=stop_timeout)
    common.begin(models.threads)
    logging.basicConfig(format="showo: %(message)s")
    with listen(host, port) as sock:
        if secret is None and not is_local(sock):
            warnings.warn(f"{host}: any machine that can reach it may ask, as there is no key", stacklevel=1)
        pipe = models.load(deferred=False)
        called = name or _name(models.model)
        with Engine(
            pipe,
            max_rows=max_rows,
            max_answers=max_answers,
            max_waiting=max_waiting,
            queue_seconds=queue_timeout,
            total_seconds=timeout,
            step_seconds=step_timeout,
        ) as engine:
            say(f"{called} at {url_of(sock)}/v1")
            Server(create_app(engine, called, limits=limits, key=secret)).run([sock])


def _name(model: str | None) -> str:
    if model is None:
        return BUNDLED_NAME
    return Path(os.path.abspath(model)).name if os.path.isdir(model) else model


def _secret(key: str | None, file: Path | None) -> str | None:
    """The key that clients must send. UserError for one that no header could hold."""
    if file is not None:
        if key is not None:
            raise UserError("--key-file: a key is given by --key or SHOWO_API_KEY too")
        try:
            with open(file, encoding="ascii", errors="surrogateescape") as opened:
                key = opened.read(_KEY_BYTES).strip()
        except OSError as error:
            raise MissingDataError(f"--key-file {file}: {error.strerror}") from error
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UserError("the key must be of visible ASCII characters, without spaces")
    return key
