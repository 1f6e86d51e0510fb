"""Options and checks that several subcommands share."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from showo.commands.output import check_file, check_folder
from showo.errors import OutputError, UserError
from showo.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from showo.engine.pipeline import ShowoPipeline
    from showo.sheets import Sheet

MAX_SIDE = 4096
SHEET_TYPES = (".png", ".jpg", ".jpeg", ".webp")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
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
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs", help="Run steps as CUDA graphs: quicker where a GPU waits for the host.")
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Run steps as torch.compile makes them; the first of each kind wait minutes for it."
    ),
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
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        metavar="TEXT=WEIGHT",
        help='A further text that the pictures are composed of, such as "a blue ring=0.5", beside the prompt, whose '
        "weight is 1 + guidance; a negative weight leads away from the text. May be given several times.",
    ),
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


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: where one of its parameters is a dataclass of options, these stand in its place."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            types = get_type_hints(hints[name], include_extras=True)
            members = [(field.name, field.default) for field in dataclasses.fields(hints[name])]
        else:
            types, members = hints, [(name, parameter.default)]
        parameters += [
            inspect.Parameter(member, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[member])
            for member, default in members
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True)
class DrawingOptions:
    """How pictures are drawn: the options of every command that draws."""

    steps: Steps = None
    guidance: Guidance = None
    top_k: TopCodes = None
    schedule: Schedule = "cosine"
    temperature: Temperature = 1.0
    sampler: Sampler = "confidence"
    guidance_schedule: GuidanceSchedule = "constant"
    negative: Negative = None
    also: Also = None

    def read(self) -> dict[str, Any]:
        """The same as `showo.engine.options.Options`. UserError where one cannot be, before anything is loaded."""
        from showo.engine.options import check_names

        check_names(self.schedule, self.sampler, self.guidance_schedule)
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "top_k": self.top_k,
            "schedule": self.schedule,
            "temperature": self.temperature,
            "sampler": self.sampler,
            "guidance_schedule": self.guidance_schedule,
            "negative_prompt": self.negative,
            "also": [_weighted(text) for text in self.also or []],
        }


def _weighted(also: str) -> tuple[str, float]:
    """("a blue ring", 0.5) of "a blue ring=0.5"."""
    text, _, weight = (part.strip() for part in also.rpartition("="))
    if not clean_text(text) or not _NUMBER.fullmatch(weight):
        raise UserError(f'--also must be TEXT=WEIGHT, such as "a blue ring=0.5", got {also!r}')
    return text, float(weight)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it computes: the options of every command that draws."""

    model: Model = None
    revision: Revision = None
    image_tokenizer: ImageTokenizerOption = None
    text_tokenizer: TextTokenizerOption = None
    device: Device = "cpu"
    dtype: DType = "float32"
    cuda_graphs: CudaGraphs = False
    compile: Compile = False
    threads: Threads = None

    def load(self, *, deferred: bool = True) -> ShowoPipeline:
        """As `ShowoPipeline.from_pretrained`; deferred is for commands that do one thing, which may be wrong."""
        from showo.engine.pipeline import ShowoPipeline

        given = {**vars(self), "dtype": parse_dtype(self.dtype)}
        source, _ = given.pop("model"), given.pop("threads")
        return ShowoPipeline.from_pretrained(source, **given, deferred=deferred)


@dataclass(frozen=True)
class SeeingModelOptions(ModelOptions):
    """The same of a command whose model looks at pictures."""

    vision_tower: VisionTowerOption = None


@dataclass(frozen=True)
class AnsweringModelOptions(SeeingModelOptions):
    """The same of a command that gives answers."""

    quantization: Quantization = None


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


def load_torch() -> None:
    """Imports torch for a command that computes, before anything else of it does; nothing where it is imported already.

    Its threads are to sleep when they have waited for each other for some microseconds. Its OpenMP library (libgomp)
    spins for milliseconds by default, and reads the setting when it is loaded; one that the user has made stays. Where
    other programs are at work on the same cores, the thread that is waited for may not be running, and a small model,
    which waits thousands of times, was ten times slower.

    The collector of garbage rests meanwhile and never looks at torch's modules later: they make hundreds of thousands
    of objects, none of them garbage, through which it went again and again while they came and when the interpreter
    ended. That was a quarter of the processor time of an import of torch.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()


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


def check_outputs(sheet: Path | None, folder: Path | None, count: int) -> list[Path]:
    """The files of `count` single pictures in --output-dir, named by their number; none where there is no folder.

    Raises OutputError where one of them, or the sheet (--output), cannot be written, or the sheet is one of them.
    """
    files = [] if folder is None else [folder / f"{number}.png" for number in range(count)]
    if sheet is not None:
        check_file("--output", sheet, SHEET_TYPES)
        if os.path.realpath(sheet) in map(os.path.realpath, files):
            raise OutputError(f"--output {sheet} is the name of a single picture in --output-dir")
    if folder is not None:
        check_folder("--output-dir", folder)
    for file in files:
        check_file("--output-dir", file, (".png",))
    return files


def check_texts(pipe: ShowoPipeline, prompts: Sequence[str], options: dict[str, Any]) -> None:
    """UserError for a prompt that would be cut, or a text of the options."""
    texts = {f"prompt {number}": prompt for number, prompt in enumerate(prompts, start=1)}
    if options["negative_prompt"] is not None:
        texts["--negative"] = options["negative_prompt"]
    texts |= {f"--also {number}": text for number, (text, _) in enumerate(options["also"], start=1)}
    ids = pipe.text_tokenizer.encode_batch([clean_text(text) for text in texts.values()])
    for (name, text), row in zip(texts.items(), ids, strict=True):
        if pipe.prompting.is_cut(row):
            start = text if len(text) <= 40 else text[:37] + "..."
            raise UserError(f"{name} is too long: {len(row)} tokens, at most {pipe.room} fit ({start!r})")
