"""The command `showo inspect`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from showo.commands import common
from showo.commands.output import check_file, check_sides, say
from showo.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from showo.data.sources.config import SourceConfig
    from showo.train.config import ShowoTraining

_OVERRIDE = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)*=")
# In whose sizes data are shown where no training is named: the bundled model's tokenizers, and room for three pictures.
_FOR_DATA = ("tiny", ["model.max_text_len=48", "model.max_positions=384"])


def inspect(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA|KEY=VALUE]...",
            help="Data to look at, as files, patterns or folders, in place of the configuration's; overrides of it.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            help="A training: YAML file or bundled name.",
            show_default="for DATA, the bundled model with longer rows",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Sheet of pictures with captions.")] = Path(
        "inspect.png"
    ),
    pictures: Annotated[int, typer.Option(min=1, help="Rows of each stream whose pictures the sheet has.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Rows of each stream whose texts are measured.")] = 1000,
    columns: Annotated[int, typer.Option(min=1, help="Pictures in a row of the sheet.")] = 8,
    layout: Annotated[str, typer.Option("--layout", help="Of DATA, where it is not to be recognised.")] = "",
    captions: Annotated[
        list[str] | None, typer.Option("--captions", help="webdataset: a file of captions by key; may be repeated.")
    ] = None,
    class_names: Annotated[str, typer.Option("--class-names", help="imagenet: the file of the classes' names.")] = "",
    images: Annotated[str, typer.Option("--images", help="llava, sequences: the folder of the pictures.")] = "",
) -> None:
    """Show what training will see: pictures with captions, how many samples, lengths of texts, rows of all formats."""
    check_file("--output", output, common.SHEET_TYPES)
    words = arguments or []
    data = [word for word in words if not _OVERRIDE.match(word)]
    overrides = [word for word in words if _OVERRIDE.match(word)]
    if not data and config is None:
        raise UserError("nothing to inspect: give files or folders of data, or a training by --config")
    if not data and (layout or captions or class_names or images):
        raise UserError("--layout, --captions, --class-names and --images describe DATA, and none is given")

    from showo.train.config import ShowoTraining, load_config
    from showo.train.inspection import with_data

    name, sizes = _FOR_DATA if config is None else (config, [])
    settings = load_config(ShowoTraining, name, [*sizes, *overrides])
    if data:
        sources = _sources(data, layout, captions or [], class_names, images)
        settings = with_data(settings, sources)
    _report(settings, output, pictures, samples, columns)


def _sources(data: list[str], layout: str, captions: list[str], class_names: str, images: str) -> list[SourceConfig]:
    """One source for every layout, of the files that have it."""
    from showo.data.recognise import recognise
    from showo.data.sources.config import SourceConfig

    files: dict[str, list[str]] = {}
    for pattern in data:
        files.setdefault(layout or recognise(pattern), []).append(pattern)
    if "imagenet" in files and not class_names:
        raise UserError(
            f"{files['imagenet'][0]}: a folder of classes; --class-names FILE, of lines such as "
            '"n01440764 tench, Tinca tinca", says what they are called'
        )
    for option, value, layouts in (
        ("--captions", captions, {"webdataset"}),
        ("--class-names", class_names, {"imagenet"}),
        ("--images", images, {"llava", "llava_captions", "sequences"}),
    ):
        if value and not layouts & files.keys():
            raise UserError(f"{option} is for {' or '.join(sorted(layouts))}, and DATA are {' and '.join(files)}")
    return [
        SourceConfig(layout=name, files=some, captions=captions, class_names=class_names, images=images)
        for name, some in files.items()
    ]


def _report(config: ShowoTraining, output: Path, pictures: int, samples: int, columns: int) -> None:
    from showo.train.inspection import Inspection, first_row

    inspection = Inspection(config)
    say(inspection.text_table(samples))
    shown = inspection.captioned_pictures(pictures)
    if shown:
        _draw_sheet([image for image, _ in shown], [caption for _, caption in shown], output, columns)
    for stream in inspection.training.values():
        say("\n" + first_row(stream, inspection.texts, config))
    if faults := inspection.faults():
        say(f"\nsamples that were skipped:\n{faults}")


def _draw_sheet(images: list[Image.Image], captions: list[str], output: Path, columns: int) -> None:
    from showo.pictures import save_image
    from showo.sheets import Sheet

    size = images[0].size
    layout = Sheet(len(images), size, captions, columns=columns, scale=max(1, common.PREVIEW_SIDE // max(size) // 2))
    check_sides("--output", output, layout.size)
    save_image(layout.draw(images), output)
    say(f"\n{output}: {len(images)} pictures")
