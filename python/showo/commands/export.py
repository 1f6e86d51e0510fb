"""The command `showo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import say
from showo.errors import UserError


def export(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or of any checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, which must not be there yet.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Of the run's checkpoints.", show_default="the newest")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="The average of the weights that the training keeps.")] = False,
    official: Annotated[
        bool, typer.Option("--official", help="Names and config.json of the released models of full size.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="as trained")
    ] = None,
    max_shard_size: common.ShardSize = "5GB",
) -> None:
    """Write a training's weights, or any checkpoint's, as safetensors with everything that is needed to load them."""
    shard_bytes = common.parse_shard_size(max_shard_size)
    kind = None if dtype is None else common.parse_dtype(dtype)

    from showo.model.export import export as write
    from showo.model.weights import resolve_folder
    from showo.train.checkpoint import checkpoints, step_name
    from showo.train.initial import newest_checkpoint

    if step is None:
        folder = resolve_folder(newest_checkpoint(source))
    else:
        folder = Path(source) / "checkpoints" / step_name(step)
        if not folder.is_dir():
            there = ", ".join(path.name for path in checkpoints(Path(source))) or "none"
            raise UserError(f"--step {step}: {source} has no such checkpoint; there are {there}")
    write(
        folder,
        out,
        average=ema,
        official=official,
        dtype=kind,
        shard_bytes=shard_bytes,
    )
    say(f"{folder} is written to {out}")
