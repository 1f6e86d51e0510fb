"""The command `showo evaluate world`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, say

app = typer.Typer(help="Measure what a model can do.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure what a model can do."""


@app.command()
@common.grouped
def world(
    *,
    folder: Annotated[Path, typer.Option("--world", help="Folder that `showo make-world` wrote.")],
    count: Annotated[int, typer.Option(min=1, help="Most cases of every part and column.")] = 800,
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    step_guidance: Annotated[float, typer.Option(help="Likewise where a picture continues a sequence.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Picture i of a part is drawn with seed + i.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Cases computed at a time.")] = 32,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all scores and all cases here.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write pictures here, with wrong ones framed in red.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where a floor of the tiny model is missed.")
    ] = False,
    models: common.SeeingModelOptions,
) -> None:
    """Judge a model on a world: pictures, answers, descriptions and steps, on combinations seen and held out."""
    if json_file is not None:
        check_file("--json", json_file, (".json",))
    if sheet is not None:
        check_file("--sheet", sheet, common.SHEET_TYPES)

    from rich.console import Console

    from showo.evaluate.world.evaluate import evaluate_world
    from showo.evaluate.world.settings import Settings
    from showo.files import atomic_write_text, make_folder
    from showo.pictures import save_image

    common.begin(models.threads)
    pipe = models.load()
    drawn = pipe.sampling.filled(steps=steps, guidance=guidance)
    settings = Settings(drawn.steps, drawn.guidance, step_guidance, seed, count, batch)
    report = evaluate_world(pipe, folder, settings, models.model or "the bundled model", Console(stderr=True))
    Console(width=None if Console().is_terminal else 120).print(report.table())
    if json_file is not None:
        make_folder(json_file.parent)
        atomic_write_text(json_file, json.dumps(report.to_json(), indent=1) + "\n")
        say(str(json_file))
    if sheet is not None:
        save_image(report.sheet(), sheet)
        say(str(sheet))
    missed = report.missed() if check else []
    for line in missed:
        say(f"missed: {line}")
    if missed:
        raise typer.Exit(1)
