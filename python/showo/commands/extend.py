"""showo extend picture.png "right: a blue ring" "down: a green square" -o out.png"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, check_sides, say_files
from showo.errors import UserError
from showo.text import clean_text


@common.grouped
def extend(
    *,
    picture: Annotated[Path, typer.Argument(help="Picture file.")],
    told: Annotated[
        list[str],
        typer.Argument(
            metavar="DIRECTION:PROMPT...", help='Where to draw on, and what: "right: a blue ring", also left, up, down.'
        ),
    ],
    output: common.PictureOutput = Path("out.png"),
    by: Annotated[
        int | None,
        typer.Option("--by", min=1, help="Codes that each step adds.", show_default="half of the training size"),
    ] = None,
    blend: common.Blend = None,
    drawing: common.DrawingOptions,
    seed: Annotated[int, typer.Option(help="Of the first window; the next ones count up.")] = 0,
    size: common.Size = None,
    models: common.ModelOptions,
    as_json: common.Json = False,
) -> None:
    """Draw a picture on beyond its edges, step by step, on a canvas of any size."""
    common.check_pictures([picture])
    check_file("--output", output, common.SHEET_TYPES)
    pixels = common.parse_size(size)
    parted = [step.partition(":") for step in told]
    for step, (_, colon, _) in zip(told, parted):
        if not colon:
            raise UserError(f'a step must be DIRECTION:PROMPT, such as "right: a blue ring", got {step!r}')
    directions, prompts = [step[0].strip() for step in parted], [clean_text(step[2]) for step in parted]
    common.load_torch()

    from showo.engine.tasks.extend import Extension
    from showo.pictures import open_image, save_image

    options = drawing.read()
    common.begin(models.threads)
    image = open_image(picture)
    pipe = models.load()
    common.check_texts(pipe, prompts, options)
    grid = Extension(pipe.grid(pixels), pipe.grid(), directions, by).grids()[-1]
    check_sides("--output", output, pipe.pixels(grid))
    (drawn,) = pipe.extend(
        image,
        prompts,
        directions,
        by=by,
        blend=blend,
        size=pixels,
        seed=seed,
        **options,
    )
    save_image(drawn, output)
    say_files({"picture": output}, as_json, directions=directions, prompts=prompts, seed=seed, size=drawn.size)
