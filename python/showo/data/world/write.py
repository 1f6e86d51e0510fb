"""A world as files, in the layouts in which data sets are downloaded. docs/world.md shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from showo.data.sources import read_pictures
from showo.data.tar import write_tar
from showo.data.world.captions import caption, mentions
from showo.data.world.draw import draw_scene
from showo.data.world.objects import COLOURS, EMOJI, SHAPES
from showo.data.world.prompts import make_prompts
from showo.data.world.questions import Interview, make_interview
from showo.data.world.sampling import draw_example
from showo.data.world.scene import Scene
from showo.data.world.steps import make_steps
from showo.data.world.stories import make_story
from showo.data.world.world import WORLD_FILE, Kind, World
from showo.errors import OutputError
from showo.files import BUNDLED, new_folder
from showo.pictures import encode_png
from showo.pieces import pieces
from showo.workers import worker_pool

SCENES_PER_SHARD = 5000
TEXTS_PER_ROW_GROUP = 1000
AT_ONCE = 5000  # things that are drawn ahead of the file that they go into
T = TypeVar("T")
Advance = Callable[[], None]  # called for everything that is done
_CLASSES = (*((shape, colour) for shape in SHAPES for colour in COLOURS), *((name, None) for name in EMOJI))


@dataclass(frozen=True)
class _Workshop:
    """Makes the things of a world in the order of their numbers, in several processes where there is a pool."""

    world: World
    advance: Advance
    pool: ProcessPoolExecutor | None

    def each(self, make: Callable[[World, str, int], T], split: str, numbers: range) -> Iterator[T]:
        for piece in pieces(numbers, AT_ONCE):
            work = partial(make, self.world, split)
            for thing in self.pool.map(work, piece, chunksize=50) if self.pool else map(work, piece):
                yield thing
                self.advance()


def write_world(world: World, folder: Path, advance: Advance, workers: int = 0) -> None:
    """Writes all files of a world; the folder is whole or absent. An empty one may be there, one with files not.

    advance: called `world.size` times. workers: processes that draw; 0 draws in this one. The files are the same.

    Raises OutputError where the folder is in use, or the operating system refuses.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; choose another folder, or delete it first")
    if not workers:
        _write_all(_Workshop(world, advance, None), folder)
        return
    with worker_pool(workers) as pool:
        _write_all(_Workshop(world, advance, pool), folder)


def _write_all(workshop: _Workshop, folder: Path) -> None:
    world = workshop.world
    with new_folder(folder) as temporary:
        for kind, (name, write) in _WRITERS.items():
            (temporary / name).mkdir()
            for split in world.splits(kind):
                write(workshop, split, temporary / name)
        _write_classes(world, temporary / "objects" / "classes.txt")
        _write_prompts(world, temporary / "prompts")
        _write_emoji(world, temporary / "emoji")
        (temporary / WORLD_FILE).write_text(json.dumps(world.to_json(), indent=1) + "\n", encoding="utf-8")


def _write_scenes(workshop: _Workshop, split: str, folder: Path) -> None:
    """Tars of key.png, key.txt with a caption, and key.json with the truth about both."""
    for shard, numbers in enumerate(pieces(range(workshop.world.count(Kind.SCENE, split)), SCENES_PER_SHARD)):
        files = (file for scene in workshop.each(_scene_files, split, numbers) for file in scene)
        write_tar(folder / f"{split}-{shard:04d}.tar", files)


def _scene_files(world: World, split: str, number: int) -> list[tuple[str, bytes]]:
    generator = world.generator(Kind.SCENE, split, number)
    example = draw_example(generator, world.holdout, split, emoji=world.emoji)
    truth = {**example.scene.to_json(), "demand": example.demand.to_json()}
    return [
        (f"{number:06d}.png", encode_png(draw_scene(example.scene))),
        (f"{number:06d}.txt", caption(example.demand, generator).encode()),
        (f"{number:06d}.json", json.dumps(truth).encode()),
    ]


def _write_objects(workshop: _Workshop, split: str, folder: Path) -> None:
    """Folders as of ImageNet, one for each kind of object: SPLIT/n00000001/n00000001_0.png."""
    for path, png in workshop.each(_object_file, split, range(workshop.world.count(Kind.OBJECT, split))):
        _write_picture(folder / path, png)


def _object_file(world: World, split: str, number: int) -> tuple[str, bytes]:
    generator = world.generator(Kind.OBJECT, split, number)
    scene = draw_example(generator, world.holdout, split, "colours", world.emoji).scene
    wnid = _wnid(_CLASSES.index((scene.objects[0].shape, scene.objects[0].colour)))
    return f"{split}/{wnid}/{wnid}_{number}.png", encode_png(draw_scene(scene))


def _write_classes(world: World, path: Path) -> None:
    """The class names as in ImageNet's synset files: "n00000001 red star, star of red colour"."""
    classes = _CLASSES if world.emoji else _CLASSES[: len(SHAPES) * len(COLOURS)]
    lines = (
        f"{_wnid(i)} {f'{colour} {shape}, {shape} of {colour} colour' if colour else shape}"
        for i, (shape, colour) in enumerate(classes)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _wnid(index: int) -> str:
    return f"n{index + 1:08d}"


def _write_questions(workshop: _Workshop, split: str, folder: Path) -> None:
    """A json as of LLaVA, with the kinds of its questions and the objects of its picture beside each entry."""

    def entries() -> Iterator[dict[str, Any]]:
        for entry, png in workshop.each(_conversation, split, range(workshop.world.count(Kind.QUESTION, split))):
            _write_picture(folder / entry["image"], png)
            yield entry

    _write_list(folder / f"{split}.json", entries())


def _conversation(world: World, split: str, number: int) -> tuple[dict[str, Any], bytes]:
    key = f"{split}-{number:06d}"
    interview = make_interview(world, split, world.generator(Kind.QUESTION, split, number))
    entry = {"id": key, "image": f"images/{key}.png", **_llava(interview)}
    return entry, encode_png(draw_scene(interview.scene))


def _llava(interview: Interview) -> dict[str, Any]:
    said = []
    for number, question in enumerate(interview.questions):
        said.append({"from": "human", "value": ("" if number else "<image>\n") + question.text})
        said.append({"from": "gpt", "value": question.answer})
    kinds = [question.kind for question in interview.questions]
    return {"conversations": said, "kinds": kinds, **interview.scene.to_json()}


def _write_steps(workshop: _Workshop, split: str, folder: Path) -> None:
    """A sequence a line: its frames with picture, caption, objects, and what the picture has to hold."""
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        for entry, pngs in workshop.each(_sequence, split, range(workshop.world.count(Kind.STEP, split))):
            for frame, png in zip(entry["frames"], pngs, strict=True):
                _write_picture(folder / frame["image"], png)
            file.write(json.dumps(entry) + "\n")


def _sequence(world: World, split: str, number: int) -> tuple[dict[str, Any], list[bytes]]:
    key = f"{split}-{number:06d}"
    steps = make_steps(world, split, world.generator(Kind.STEP, split, number))
    frames = []
    for i, step in enumerate(steps):
        truth = {**step.scene.to_json(), "demand": step.demand.to_json()}
        frames.append({"image": f"images/{key}-{i}.png", "caption": step.caption, **truth})
    return {"id": key, "frames": frames}, [encode_png(draw_scene(step.scene)) for step in steps]


def _write_text(workshop: _Workshop, split: str, folder: Path) -> None:
    """A parquet file with a column "text"."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(folder / f"{split}-0000.parquet", schema) as file:
        for numbers in pieces(range(workshop.world.count(Kind.TEXT, split)), TEXTS_PER_ROW_GROUP):
            file.write_table(pa.table([list(workshop.each(_story, split, numbers))], schema=schema))


def _story(world: World, split: str, number: int) -> str:
    return make_story(world, world.generator(Kind.TEXT, split, number))


def _write_prompts(world: World, folder: Path) -> None:
    folder.mkdir()
    for name, split in (("seen", "train"), ("held-out", "held-out")):
        _write_list(folder / f"{name}.json", make_prompts(world, split))


def _write_emoji(world: World, folder: Path) -> None:
    """The bundled training set of emoji, without those whose names are held-out combinations ("purple heart").

    Who trains on emoji beside a world takes these, or the model has been told what it is to find out.
    """
    folder.mkdir()
    files: list[tuple[str, bytes]] = []
    for sample in read_pictures(f"{BUNDLED}emoji/train-*.tar"):
        if world.holdout.text_is_seen(mentions(sample.caption), Scene(())):
            assert sample.picture.data is not None
            files += [(f"{sample.key}.png", sample.picture.data), (f"{sample.key}.txt", sample.caption.encode())]
    write_tar(folder / "train-0000.tar", files)


def _write_picture(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)


def _write_list(path: Path, entries: Iterable[Any]) -> None:
    """A json list with an entry a line."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number, entry in enumerate(entries):
            file.write((",\n" if number else "") + json.dumps(entry))
        file.write("\n]\n")


_WRITERS: dict[Kind, tuple[str, Callable[[_Workshop, str, Path], None]]] = {
    Kind.SCENE: ("scenes", _write_scenes),
    Kind.OBJECT: ("objects", _write_objects),
    Kind.QUESTION: ("questions", _write_questions),
    Kind.STEP: ("steps", _write_steps),
    Kind.TEXT: ("text", _write_text),
}
