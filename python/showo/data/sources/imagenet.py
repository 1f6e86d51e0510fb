"""Folders of pictures by class, as ImageNet has them: root/n01440764/*.JPEG, and a file of the classes' names.

A line of that file is "n01440764 tench, Tinca tinca"; the caption of a picture is its class's first name, "tench".
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from showo.data.captions import usable_captions
from showo.data.index import Part, open_index
from showo.data.open_files import decode_text
from showo.data.patterns import Folder, find_paths
from showo.data.sample import CaptionedPicture, Picture
from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError, DataError

IMAGE_TYPES = (".jpeg", ".jpg", ".png", ".webp")


class ImageNet:
    kind = CaptionedPicture

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name = config.describe()
        roots = find_paths(config.files)
        if not config.class_names:
            raise ConfigError(f"{self.name}: class_names must be the file of the classes' names, got ''")
        classes = [path for root in roots for path in class_folders(root)]
        names = read_class_names(find_paths([config.class_names], "class_names")[0])
        if unnamed := [path for path in classes if path.name not in names]:
            raise DataError(f"{config.class_names}: no name for {unnamed[0].name}, which {unnamed[0].parent} holds")
        self.captions = [usable_captions(names[path.name], config.clean, config.class_names) for path in classes]
        self.folders = [Folder(path) for path in classes]
        self.index = open_index(classes, scan_folder, cache)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> CaptionedPicture:
        number, (start, length) = self.index.locate(index)
        name = self.index.text_of(number, start, length)
        path = self.index.files[number]
        picture = Picture(str(path / name), path=self.folders[number].file(name, str(path / name)))
        return CaptionedPicture(f"{path.name}/{name}", picture, self.captions[number])


def class_folders(root: Path) -> list[Path]:
    """The folders in `root`, by name. Raises DataError where there is none, or one is a link that leads out of it."""
    if not root.is_dir():
        raise DataError(f"{root}: no folder; expected one that holds a folder for every class")
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{root}: no folders in it; expected one for every class, such as n01440764")
    within = Folder(root)
    for path in found:
        within.file(path.name, str(path))
    return found


def scan_folder(path: Path) -> Part:
    """Records (start, length) of the names of all pictures in a folder, in the part's text. Empty folders have none."""
    names = sorted(os.fsencode(entry.name) for entry in os.scandir(path) if _is_picture(entry.name))
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    return Part(np.stack([ends - lengths, lengths], 1), b"".join(names))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_TYPES) and not name.startswith(".")


def read_class_names(path: Path) -> dict[str, str]:
    """First names by class. Raises DataError for a line without a name, and for a class that is there twice."""
    names: dict[str, str] = {}
    for number, line in enumerate(decode_text(path.read_bytes(), str(path)).splitlines(), 1):
        wnid, _, rest = line.strip().partition(" ")
        name = rest.split(",")[0].strip()
        if line.strip() and not name:
            raise DataError(f"{path}: line {number}: expected a class and its names, got {line!r}")
        if names.setdefault(wnid, name) != name:
            raise DataError(f"{path}: line {number}: {wnid} has two names, {names[wnid]!r} and {name!r}")
    return names
