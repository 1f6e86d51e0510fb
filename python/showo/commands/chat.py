"""showo chat picture.png picture2.png [--question "What is this?" --question "What colour?"]"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say
from showo.errors import UserError
from showo.text import clean_text


@common.grouped
def chat(
    *,
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="Picture files, in order; none at all for text.")
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question", "-q", help="What to ask, in order.", show_default="the lines of standard input, as they come"
        ),
    ] = None,
    caption: Annotated[
        bool, typer.Option("--caption", help="Begin with a caption, of all pictures together: key frames, say.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest word.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among tokens that make up this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the first answer's choices; turn i has seed + i.")] = 0,
    size: common.Size = None,
    models: common.AnsweringModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each turn, for programs.")] = False,
) -> None:
    """Talk about pictures: every answer knows the questions and answers before it."""
    common.check_pictures(pictures or [])
    for number, text in enumerate(question or [], start=1):
        if not clean_text(text):
            raise UserError(f"--question {number} is empty")
    pixels = common.parse_size(size)
    common.load_torch()

    from showo.engine.tasks.chat import check_turns
    from showo.engine.understand import check_options
    from showo.pictures import open_image

    check_options(max_new_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    common.begin(models.threads)
    images = [open_image(path) for path in pictures or []]
    pipe = models.load()
    check_turns(pipe, len(images), [*[None] * caption, *(question or [])], pixels)
    talk = pipe.chat(images, size=pixels, seed=seed)
    for asked in itertools.chain([None] * caption, question if question is not None else _lines()):
        stream = talk.stream(asked, max_new_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        for piece in stream:
            if not as_json:
                say(piece, end="")
        say(json.dumps(dataclasses.asdict(talk.turns[-1])) if as_json else "")


def _lines() -> Iterator[str]:
    """The lines of standard input in which something stands. On a terminal, a mark says that one is waited for."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are told by name when they are read
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if clean_text(line):
            yield line
