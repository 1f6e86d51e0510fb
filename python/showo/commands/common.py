"""Options and checks that several subcommands share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from showo.errors import UserError

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline

MAX_SIDE = 4096

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
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Size = Annotated[
    str | None, typer.Option("--size", help="Width x height in pixels, such as 64x64.", show_default="as trained")
]


def load_pipeline(
    model: str | None, image_tokenizer: str | None, text_tokenizer: str | None, device: str, dtype: str
) -> ShowoPipeline:
    import torch

    from showo.engine.pipeline import ShowoPipeline

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise UserError(f"--dtype must be one of {', '.join(dtypes)}, got {dtype!r}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device must be cpu, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda"):
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= number:
            raise UserError(f"--device {device}: this machine has {number} CUDA devices")
    return ShowoPipeline.from_pretrained(
        model, image_tokenizer=image_tokenizer, text_tokenizer=text_tokenizer, dtype=dtypes[dtype], device=device
    )


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) from "640x480"."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise UserError(f"--size must be WIDTHxHEIGHT with sides of 1 to {MAX_SIDE} pixels, got {size!r}")
    return int(match[1]), int(match[2])


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """UserError where a file cannot be written later, before any work."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder")
    folder = path.absolute().parent
    while not folder.exists():  # made when the file is written
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: {folder} is not a writable folder")
