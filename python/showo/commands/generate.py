"""showo generate "red apple" "soccer ball" -o out.png"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, check_sides, say_files
from showo.text import clean_text

if TYPE_CHECKING:
    from PIL import Image

    from showo.engine.options import PictureCallback
    from showo.engine.pipeline import ShowoPipeline


@common.grouped
def generate(
    *,
    prompts: Annotated[list[str], typer.Argument(help="What to draw; each prompt gives one picture.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Sheet of all pictures, with the prompt under each.",
            show_default="out.png, or none with --output-dir",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Folder for the single pictures: 0.png, 1.png, ...")
    ] = None,
    drawing: common.DrawingOptions,
    seed: Annotated[int, typer.Option(help="Picture i is drawn with seed + i.")] = 0,
    batch: common.Batch = 8,
    columns: Annotated[int, typer.Option(min=1, help="Pictures in a row of the sheet.")] = 8,
    steps_gif: Annotated[
        Path | None, typer.Option("--steps-gif", help="Also write an animation of the masks resolving.")
    ] = None,
    size: common.Size = None,
    models: common.ModelOptions,
    as_json: common.Json = False,
) -> None:
    """Make a picture for each prompt: on one sheet with the prompt under each, as a file each, or both."""
    if output is None and output_dir is None:
        output = Path("out.png")
    files = common.check_outputs(output, output_dir, len(prompts))
    if steps_gif is not None:
        check_file("--steps-gif", steps_gif, (".gif",))
    pixels = common.parse_size(size)
    prompts = [clean_text(prompt) for prompt in prompts]
    common.load_torch()

    options = drawing.read()
    common.begin(models.threads)
    pipe = models.load()
    common.check_texts(pipe, prompts, options)
    layout = common.sheet_of(pipe, prompts, pixels, columns)
    for option, path in (("--output", output), ("--steps-gif", steps_gif)):
        if path is not None:
            check_sides(option, path, layout.size)

    from showo.pictures import save_image

    film: list[list[Image.Image]] = []
    pictures = pipe.generate(
        prompts,
        size=pixels,
        seed=seed,
        batch=batch,
        callback=_watch(pipe, pixels, film) if steps_gif is not None else None,
        **options,
    )
    for picture, file in zip(pictures, files):
        save_image(picture, file)
    if output is not None:
        save_image(layout.draw(pictures), output)
    if steps_gif is not None:
        frames = [layout.draw(frame) for frame in [*film, pictures]]
        durations = [200] * (len(frames) - 1) + [2000]
        save_image(frames[0], steps_gif, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    made = {"pictures": files, "sheet": output, "steps_gif": steps_gif}
    say_files(made, as_json, prompts=prompts, seeds=[seed + number for number in range(len(prompts))])


def _watch(
    pipe: ShowoPipeline,
    size: tuple[int, int] | None,
    film: list[list[Image.Image]],
) -> PictureCallback:
    """Callback that keeps every step for the animation, with masked places grey."""
    import torch

    from showo.engine.generate import GenerationStep
    from showo.pictures import cover

    grid = pipe.grid(size)

    def callback(first: int, step: GenerationStep) -> None:
        masked = step.masked.view(-1, *grid).cpu()
        if step.step + 1 == step.steps:  # nothing is open after the last step
            masked = torch.zeros_like(masked)
        if step.step == len(film):
            film.append([])
        film[step.step] += map(cover, pipe.decode(step.codes, grid), masked)

    return callback
