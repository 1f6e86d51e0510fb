"""showo story "a red star and a blue ring" "paint the star green" -o story.png"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_sides, say_files
from showo.errors import UserError
from showo.text import clean_text


@common.grouped
def story(
    *,
    texts: Annotated[list[str], typer.Argument(help="The texts in order; each is followed by its picture.")],
    picture: Annotated[
        list[Path] | None,
        typer.Option("--picture", "-p", help="Picture that follows the first text, then the second, and so on."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Sheet of all pictures, with the text under each.")] = (
        Path("story.png")
    ),
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Also a folder for the single pictures: 0.png, 1.png, ...")
    ] = None,
    drawing: common.DrawingOptions,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    columns: Annotated[int, typer.Option(min=1, help="Pictures in a row of the sheet.")] = 8,
    size: common.Size = None,
    models: common.ModelOptions,
    as_json: common.Json = False,
) -> None:
    """Tell a story or a how-to: text, picture, text, picture. Each picture is drawn after all that is before it."""
    shown = picture or []
    common.check_pictures(shown)
    if len(shown) > len(texts):
        raise UserError(f"{len(shown)} pictures for {len(texts)} texts; each picture follows its text")
    files = common.check_outputs(output, output_dir, len(texts))
    pixels = common.parse_size(size)
    texts = [clean_text(text) for text in texts]
    common.load_torch()

    from showo.pictures import open_image, save_image

    options = drawing.read()
    common.begin(models.threads)
    given = [open_image(path) for path in shown]
    pipe = models.load()
    common.check_texts(pipe, texts, options)
    layout = common.sheet_of(pipe, texts, pixels, columns)
    check_sides("--output", output, layout.size)
    (pictures,) = pipe.interleave(
        [texts],
        [given],
        size=pixels,
        seed=seed,
        **options,
    )
    for drawn, file in zip(pictures, files):
        save_image(drawn, file)
    save_image(layout.draw(pictures), output)
    say_files({"pictures": files, "sheet": output}, as_json, texts=texts)
