"""The command `showo convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder or hub id of published weights, also of an image tokenizer.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, which must not be there yet.")],
    revision: common.Revision = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="as stored")
    ] = None,
    max_shard_size: common.ShardSize = "5GB",
) -> None:
    """Write published weights in this package's layout; `showo export --official` writes them back, bit for bit."""
    shard_bytes = common.parse_shard_size(max_shard_size)
    kind = None if dtype is None else common.parse_dtype(dtype)

    from showo.engine.convert import convert as write

    write(source, out, revision=revision, dtype=kind, shard_bytes=shard_bytes)
    say(f"{source} is written to {out}")
