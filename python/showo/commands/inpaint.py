"""showo inpaint picture.png "a blue star" --box 0,0,32,64 -o out.png"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, numbered, say_files
from showo.errors import UserError
from showo.text import clean_text


@common.grouped
def inpaint(
    *,
    picture: Annotated[Path, typer.Argument(help="Picture file.")],
    prompt: Annotated[str, typer.Argument(help="What the whole picture is to show.")],
    output: common.PictureOutput = Path("out.png"),
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Picture of the same size: black stays, all else is drawn anew; or --box."),
    ] = None,
    box: Annotated[
        str | None, typer.Option("--box", help="LEFT,TOP,RIGHT,BOTTOM in pixels, the last two not included.")
    ] = None,
    blend: common.Blend = None,
    drawing: common.DrawingOptions,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    count: common.Count = 1,
    batch: common.Batch = 8,
    size: common.Size = None,
    models: common.ModelOptions,
    as_json: common.Json = False,
) -> None:
    """Draw a part of a picture anew, which a mask or a box marks: every code that a marked pixel lies in."""
    if (mask is None) == (box is None):
        raise UserError("give --mask or --box")
    common.check_pictures([picture] if mask is None else [picture, mask])
    outputs = numbered(output, count)
    for file in outputs:
        check_file("--output", file, common.SHEET_TYPES)
    pixels = common.parse_size(size)
    area = mask or _box(box or "")
    prompt = clean_text(prompt)
    common.load_torch()

    from showo.engine.tasks.inpaint import as_mask
    from showo.pictures import open_image, save_image, to_grey

    options = drawing.read()
    common.begin(models.threads)
    image = open_image(picture)
    marked = as_mask(open_image(area, convert=to_grey) if isinstance(area, Path) else area, image.size)
    pipe = models.load()
    common.check_texts(pipe, [prompt], options)
    pictures = pipe.inpaint(
        image,
        prompt,
        marked,
        blend=blend,
        num_images_per_prompt=count,
        batch=batch,
        size=pixels,
        seed=seed,
        **options,
    )
    for drawn, file in zip(pictures, outputs):
        save_image(drawn, file)
    say_files({"pictures": outputs}, as_json, prompt=prompt, seeds=[seed + number for number in range(count)])


def _box(box: str) -> tuple[int, int, int, int]:
    if not re.fullmatch(r"\d{1,6}(,\d{1,6}){3}", box):
        raise UserError(f"--box must be LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,32,64, got {box!r}")
    left, top, right, bottom = map(int, box.split(","))
    return left, top, right, bottom
