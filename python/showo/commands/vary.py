"""showo vary picture.png "a red apple" --share 0.5 --count 4 -o out.png"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, numbered, say_files
from showo.text import clean_text


@common.grouped
def vary(
    *,
    picture: Annotated[Path, typer.Argument(help="Picture file.")],
    prompt: Annotated[str, typer.Argument(help="What the new pictures are to show.")],
    output: common.PictureOutput = Path("out.png"),
    share: Annotated[
        float, typer.Option("--share", help="Of the codes: drawn anew; with --other, taken from there.")
    ] = 0.5,
    other: Annotated[
        Path | None, typer.Option("--other", help="A second picture, to be mixed in; the seams are drawn anew.")
    ] = None,
    drawing: common.DrawingOptions,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    count: common.Count = 1,
    batch: common.Batch = 8,
    size: common.Size = None,
    models: common.ModelOptions,
    as_json: common.Json = False,
) -> None:
    """Make pictures like a given one, or between two."""
    common.check_pictures([picture] if other is None else [picture, other])
    outputs = numbered(output, count)
    for file in outputs:
        check_file("--output", file, common.SHEET_TYPES)
    pixels = common.parse_size(size)
    prompt = clean_text(prompt)
    common.load_torch()

    from showo.engine.tasks.vary import check_share
    from showo.pictures import open_image, save_image

    check_share(share)
    options = drawing.read()
    common.begin(models.threads)
    image, second = open_image(picture), None if other is None else open_image(other)
    pipe = models.load()
    common.check_texts(pipe, [prompt], options)
    pictures = pipe.vary(
        image,
        prompt,
        other=second,
        share=share,
        num_images_per_prompt=count,
        batch=batch,
        size=pixels,
        seed=seed,
        **options,
    )
    for drawn, file in zip(pictures, outputs):
        save_image(drawn, file)
    say_files({"pictures": outputs}, as_json, prompt=prompt, seeds=[seed + number for number in range(count)])
