"""The command `showo tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from showo.commands import common
from showo.commands.output import check_folder, say


def tokenize(
    layout: Annotated[str, typer.Argument(help="How the files hold pictures and captions: webdataset or imagenet.")],
    files: Annotated[list[str], typer.Argument(help="Tars, or folders of classes; *, {0000..0009} and {a,b} count.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder of the shards; may hold some already.")],
    image_tokenizer: Annotated[
        str, typer.Option("--image-tokenizer", help="Folder, hub id or bundled:NAME.")
    ] = "bundled:tiny/image_tokenizer",
    resolution: Annotated[int, typer.Option(min=1, help="Sides of the pictures, in pixels.")] = 64,
    captions: Annotated[
        list[str] | None, typer.Option("--captions", help="webdataset: a file of captions by key; may be repeated.")
    ] = None,
    class_names: Annotated[str, typer.Option("--class-names", help="imagenet: the file of the classes' names.")] = "",
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures that a shard is made of.")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures encoded at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures ahead.")] = 2,
    broken_share: Annotated[
        float, typer.Option("--broken-share", min=0, max=1, help="Where more of the samples cannot be used, it ends.")
    ] = 0.01,
    device: common.Device = "cpu",
    threads: common.Threads = None,
) -> None:
    """Encode all pictures of a data set once, into shards of codes that training reads in their place.

    A run that was stopped goes on where it was when it is started again.
    """
    from rich.console import Console

    from showo.data.code_shards import Encoding
    from showo.data.sources.config import SourceConfig
    from showo.data.tokenize import Tokenizing, open_captioned
    from showo.devices import find_device, moved_to
    from showo.model.image_tokenizer import ImageTokenizer

    check_folder("--output-dir", output_dir)
    config = SourceConfig(layout=layout, files=files, captions=captions or [], class_names=class_names)
    place = find_device(device)
    common.begin(threads)
    images = ImageTokenizer.from_pretrained(image_tokenizer).to(place)
    side = images.config.side(resolution, "--resolution")
    source, origin = open_captioned(config, shard_size)
    done = Tokenizing(
        source,
        origin,
        output_dir,
        Encoding.of(images, image_tokenizer, resolution),
        lambda pixels: images.encode_pixels(moved_to(place, pixels)),
        side * side,
        images.config.codebook_size,
        batch,
        workers,
        broken_share,
    ).run(Console(stderr=True))
    say(
        f"{output_dir}: {done.pictures} pictures of {side * side} codes in {done.shards} shards, {done.made} of them "
        f"made now; {len(source) - done.pictures} samples skipped"
    )
    if table := done.faults.table():
        say(table)
