"""A world as files, in the layouts in which data sets are downloaded. docs/world.md shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from showo.data.tar import write_tar
from showo.data.world.captions import caption
from showo.data.world.draw import draw_scene
from showo.data.world.objects import COLOURS, EMOJI, SHAPES
from showo.data.world.prompts import make_prompts
from showo.data.world.sampling import SPLITS, draw_example
from showo.data.world.world import WORLD_FILE, Kind, World
from showo.errors import OutputError
from showo.files import atomic_folder
from showo.pictures import encode_png

SCENES_PER_SHARD = 5000
Advance = Callable[[], None]  # called for everything that is done
_CLASSES = (*((shape, colour) for shape in SHAPES for colour in COLOURS), *((name, None) for name in EMOJI))


def steps_of(world: World) -> int:
    """How often `write_world` calls `advance`."""
    return sum(world.count(kind, split) for kind in (Kind.SCENE, Kind.OBJECT) for split in SPLITS)


def write_world(world: World, folder: Path, advance: Advance) -> None:
    """Writes all files of a world; the folder is whole or absent. An empty one may be there, one with files not.

    Raises OutputError where the folder is in use, or the operating system refuses.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; choose another folder, or delete it first")
    try:
        with atomic_folder(folder) as temporary:
            for split in SPLITS:
                _write_scenes(world, split, temporary / "scenes", advance)
                _write_objects(world, split, temporary / "objects", advance)
            _write_classes(world, temporary / "objects" / "classes.txt")
            for name, split in (("seen", "train"), ("held-out", "held-out")):
                _write_list(temporary / "prompts" / f"{name}.json", make_prompts(world, split))
            (temporary / WORLD_FILE).write_text(json.dumps(world.to_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _write_scenes(world: World, split: str, folder: Path, advance: Advance) -> None:
    """Tars of key.png, key.txt with a caption, and key.json with the truth about both."""
    folder.mkdir(exist_ok=True)
    count = world.count(Kind.SCENE, split)
    for shard, start in enumerate(range(0, count, SCENES_PER_SHARD)):
        numbers = range(start, min(start + SCENES_PER_SHARD, count))
        write_tar(folder / f"{split}-{shard:04d}.tar", _scene_files(world, split, numbers, advance))


def _scene_files(world: World, split: str, numbers: Iterable[int], advance: Advance) -> Iterator[tuple[str, bytes]]:
    for number in numbers:
        generator = world.generator(Kind.SCENE, split, number)
        example = draw_example(generator, world.holdout, split, emoji=world.emoji)
        truth = {**example.scene.to_json(), "demand": example.demand.to_json()}
        yield f"{number:06d}.png", encode_png(draw_scene(example.scene))
        yield f"{number:06d}.txt", caption(example.demand, generator).encode()
        yield f"{number:06d}.json", json.dumps(truth).encode()
        advance()


def _write_objects(world: World, split: str, folder: Path, advance: Advance) -> None:
    """Folders as of ImageNet, one for each kind of object: SPLIT/n00000001/n00000001_0.png."""
    for number in range(world.count(Kind.OBJECT, split)):
        generator = world.generator(Kind.OBJECT, split, number)
        scene = draw_example(generator, world.holdout, split, "colours", world.emoji).scene
        wnid = _wnid(_CLASSES.index((scene.objects[0].shape, scene.objects[0].colour)))
        _write_picture(folder / split / wnid / f"{wnid}_{number}.png", draw_scene(scene))
        advance()


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


def _write_picture(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))


def _write_list(path: Path, entries: Iterable[Any]) -> None:
    """A json list with an entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")
