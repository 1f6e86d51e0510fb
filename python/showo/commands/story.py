"""showo story "a red star and a blue ring" "paint the star green" -o story.png"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, check_folder, check_sides, say_files
from showo.errors import UserError
from showo.text import clean_text


def story(
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
    steps: common.Steps = None,
    guidance: common.Guidance = None,
    top_k: common.TopCodes = None,
    schedule: common.Schedule = "cosine",
    temperature: common.Temperature = 1.0,
    sampler: common.Sampler = "confidence",
    guidance_schedule: common.GuidanceSchedule = "constant",
    negative: common.Negative = None,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    columns: Annotated[int, typer.Option(min=1, help="Pictures in a row of the sheet.")] = 8,
    size: common.Size = None,
    model: common.Model = None,
    revision: common.Revision = None,
    image_tokenizer: common.ImageTokenizerOption = None,
    text_tokenizer: common.TextTokenizerOption = None,
    device: common.Device = "cpu",
    dtype: common.DType = "float32",
    threads: common.Threads = None,
    as_json: common.Json = False,
) -> None:
    """Tell a story or a how-to: text, picture, text, picture. Each picture is drawn after all that is before it."""
    common.spin_briefly()
    shown = picture or []
    common.check_pictures(shown)
    if len(shown) > len(texts):
        raise UserError(f"{len(shown)} pictures for {len(texts)} texts; each picture follows its text")
    files = [output_dir / f"{number}.png" for number in range(len(texts))] if output_dir is not None else []
    check_file("--output", output, common.SHEET_TYPES)
    if output_dir is not None:
        check_folder("--output-dir", output_dir)
        for file in files:
            check_file("--output-dir", file, (".png",))
    if os.path.realpath(output) in map(os.path.realpath, files):
        raise UserError(f"--output {output} is the name of a single picture in --output-dir")
    pixels = common.parse_size(size)
    texts = [clean_text(text) for text in texts]

    from showo.pictures import open_image, save_image

    common.check_drawing(schedule, sampler, guidance_schedule)
    common.begin(threads)
    given = [open_image(path) for path in shown]
    pipe = common.load_pipeline(model, image_tokenizer, text_tokenizer, device, dtype, revision=revision)
    common.check_prompts(pipe, texts)
    common.check_negative(pipe, negative)
    layout = common.sheet_of(pipe, texts, pixels, columns)
    check_sides("--output", output, layout.size)
    (pictures,) = pipe.interleave(
        [texts],
        [given],
        size=pixels,
        steps=steps,
        guidance=guidance,
        top_k=top_k,
        schedule=schedule,
        temperature=temperature,
        sampler=sampler,
        guidance_schedule=guidance_schedule,
        negative_prompt=negative,
        seed=seed,
    )
    for drawn, file in zip(pictures, files):
        save_image(drawn, file)
    save_image(layout.draw(pictures), output)
    say_files({"pictures": files, "sheet": output}, as_json, texts=texts)
