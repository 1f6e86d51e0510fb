"""Options and checks that several subcommands share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from showo.errors import UserError
from showo.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from showo.engine.pipeline import ShowoPipeline
    from showo.sheets import Sheet

MAX_SIDE = 4096
SHEET_TYPES = (".png", ".jpg", ".jpeg", ".webp")
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
PREVIEW_SIDE = 256  # pixels to which small pictures are enlarged on a sheet, at most

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder, hub id or bundled:NAME of a checkpoint.", show_default="the bundled tiny model"
    ),
]
ImageTokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--image-tokenizer", help="Folder, hub id or bundled:NAME, where the model's folder neither holds nor names it."
    ),
]
TextTokenizerOption = Annotated[
    str | None, typer.Option("--text-tokenizer", help="tokenizer.json, where the model's folder does not hold it.")
]
VisionTowerOption = Annotated[
    str | None, typer.Option("--vision-tower", help="Folder or hub id, where the model's folder does not name it.")
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the hub's repository.", show_default="main")
]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Larger weights are split.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Quantization = Annotated[
    str | None,
    typer.Option("--quantization", help="int8: weights a quarter as large, for less memory and quicker text."),
]
Size = Annotated[
    str | None, typer.Option("--size", help="Width x height in pixels, such as 64x64.", show_default="as trained")
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, max=1000, help="Steps over which masks resolve.", show_default="the model's own, or 18"
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", help="How strongly to follow the prompt; 0 is off.", show_default="the model's own, or 1.75"
    ),
]
TopCodes = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=0, help="Draw from so many most probable codes; 0 is all.", show_default="the model's own, or 0"
    ),
]
Schedule = Annotated[str, typer.Option("--schedule", help="cosine, linear, sigmoid or pow<exponent>.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Noise in the order in which places are settled.")]
Sampler = Annotated[
    str,
    typer.Option(
        "--sampler",
        help="Which places get their token when: confidence, linear-temperature, halton, entropy-bound[:NATS] or "
        "remask[:PROBABILITY].",
    ),
]
GuidanceSchedule = Annotated[
    str, typer.Option("--guidance-schedule", help="constant, linear or off<share> (off0.25: none at the end).")
]
Negative = Annotated[
    str | None, typer.Option("--negative", help="What the pictures are to be unlike.", show_default="the empty text")
]
Blend = Annotated[
    int | None,
    typer.Option(
        "--blend",
        min=0,
        max=MAX_SIDE,
        help="Keep the picture's own pixels elsewhere, and fade over so many pixels.",
        show_default="all pixels are the image tokenizer's",
    ),
]
PictureOutput = Annotated[
    Path, typer.Option("--output", "-o", help="The new picture; of several, out-0.png, out-1.png, ...")
]
Count = Annotated[int, typer.Option("--count", min=1, max=10_000, help="How many pictures.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Pictures computed at a time.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for programs.")]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads to compute with.", show_default="torch's choice")
]


def max_threads() -> int:
    """Most threads that may be asked for: more than there are cores may help somebody, thousands help nobody."""
    return max(64, os.cpu_count() or 1)


def set_threads(threads: int | None) -> None:
    """CPU threads of torch and of showo_ext; None leaves torch's choice. UserError below 1 or above `max_threads`."""
    if threads is None:
        return
    if not 1 <= threads <= max_threads():
        raise UserError(f"--threads must be 1 to {max_threads()}, got {threads}")

    import torch

    torch.set_num_threads(threads)


def spin_briefly() -> None:
    """Lets torch's threads sleep when they have waited for each other for some microseconds, not some milliseconds.

    Spinning is what its OpenMP library (libgomp) does by default. Where other programs are at work on the same cores,
    the thread that is waited for may not be running, and a small model, which waits thousands of times, was ten times
    slower. To be called before torch is loaded, which is when the setting is read; one that the user has made stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def check_drawing(schedule: str, sampler: str, guidance_schedule: str) -> None:
    """UserError for names that say nothing of how to draw, before anything is loaded."""
    from showo.engine.guidance import guidance_weights
    from showo.engine.samplers import find_sampler
    from showo.engine.schedule import mask_schedule

    mask_schedule(schedule)
    find_sampler(sampler)
    guidance_weights(0.0, 1, guidance_schedule)


def sheet_of(pipe: ShowoPipeline, texts: list[str], size: tuple[int, int] | None, columns: int) -> Sheet:
    """A sheet for a picture with each text, small ones enlarged."""
    from showo.sheets import Sheet

    width, height = pipe.pixels(pipe.grid(size))
    scale = max(1, PREVIEW_SIDE // max(width, height))
    return Sheet(len(texts), (width, height), texts, columns=columns, scale=scale)


def begin(threads: int | None) -> None:
    """What every command does before it computes: `set_threads`, and a UserError where the kernels are missing."""
    set_threads(threads)

    from showo_ext import build_info

    info = build_info()
    if not info["native"]:
        raise UserError(f"showo_ext has no working native module ({info['native_error']}); reinstall the package")


def load_pipeline(
    model: str | None,
    image_tokenizer: str | None,
    text_tokenizer: str | None,
    device: str,
    dtype: str,
    vision_tower: str | None = None,
    revision: str | None = None,
    quantization: str | None = None,
) -> ShowoPipeline:
    from showo.engine.pipeline import ShowoPipeline

    return ShowoPipeline.from_pretrained(
        model,
        image_tokenizer=image_tokenizer,
        text_tokenizer=text_tokenizer,
        vision_tower=vision_tower,
        revision=revision,
        dtype=parse_dtype(dtype),
        device=device,
        quantization=quantization,
    )


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) from "640x480"."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise UserError(f"--size must be WIDTHxHEIGHT with sides of 1 to {MAX_SIDE} pixels, got {size!r}")
    return int(match[1]), int(match[2])


def parse_shard_size(size: str) -> int:
    """Bytes of "5GB"."""
    found = re.fullmatch(r"([1-9][0-9]{0,8}) ?([KMG]B)", size)
    if not found:
        raise UserError(f"--max-shard-size must be a number of KB, MB or GB, such as 5GB, got {size!r}")
    return int(found[1]) * _BYTES[found[2]]


def parse_dtype(name: str) -> torch.dtype:
    """Raises UserError for a name that is no dtype of weights."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UserError(f"--dtype must be one of {', '.join(dtypes)}, got {name!r}")
    return dtypes[name]


def check_pictures(paths: Sequence[Path]) -> None:
    """UserError where one is no file."""
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such picture")


def check_prompts(pipe: ShowoPipeline, prompts: Sequence[str]) -> None:
    """UserError for a text that would be cut."""
    _check_room(pipe, {f"prompt {number}": prompt for number, prompt in enumerate(prompts, start=1)})


def check_negative(pipe: ShowoPipeline, negative: str | None) -> None:
    """UserError for a negative prompt that would be cut."""
    _check_room(pipe, {} if negative is None else {"--negative": clean_text(negative)})


def _check_room(pipe: ShowoPipeline, texts: dict[str, str]) -> None:
    for (name, text), ids in zip(texts.items(), pipe.text_tokenizer.encode_batch([*texts.values()])):
        if pipe.prompting.is_cut(ids):
            start = text if len(text) <= 40 else text[:37] + "..."
            raise UserError(f"{name} is too long: {len(ids)} tokens, at most {pipe.room} fit ({start!r})")
