"""showo describe picture.png [--question "What is this?"]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say


@common.grouped
def describe(
    *,
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.")],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="What to ask.", show_default="a caption")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest word.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among tokens that make up this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the choices.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures computed at a time.")] = 8,
    size: common.Size = None,
    models: common.AnsweringModelOptions,
) -> None:
    """Say what is on a picture, or answer a question about it."""
    common.check_pictures(pictures)
    pixels = common.parse_size(size)
    common.load_torch()

    from showo.pictures import open_image

    common.begin(models.threads)
    images = [open_image(path) for path in pictures]
    pipe = models.load()
    texts = pipe.describe(
        images,
        question,
        size=pixels,
        max_new_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        batch=batch,
    )
    for path, text in zip(pictures, texts):
        say(f"{path}: {text}" if len(pictures) > 1 else text)
