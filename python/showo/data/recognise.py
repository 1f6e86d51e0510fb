"""Which layout data have, found by looking into them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from showo.data.json_scan import LINE_TYPES, MEMBER, entries, parse_entry
from showo.data.parquet import open_parquet
from showo.data.patterns import find_paths
from showo.data.sources.codes import COLUMNS as CODES_COLUMNS
from showo.data.sources.config import LAYOUTS
from showo.data.sources.imagenet import IMAGE_TYPES as FOLDER_IMAGE_TYPES
from showo.data.sources.parquet_text import COLUMNS as TEXT_COLUMNS
from showo.data.tar import TarError, walk_tar
from showo.data.tar_scan import CAPTION_TYPES, IMAGE_TYPES, is_hidden, split_name
from showo.errors import DataError, SampleError

_LOOKED_AT = 100  # first members of a tar, entries of a JSON file
_JSON_TYPES = (".json", *LINE_TYPES)


def recognise(pattern: str) -> str:
    """The layout of the first file or folder that a pattern stands for.

    Raises DataError where nothing is there, or it is of none of the layouts.
    """
    path = find_paths([pattern])[0]
    if path.is_dir():
        if found := _of_folder(path):
            return found
        raise DataError(f"{path}: holds no folders with pictures; give its files, such as '{path}/*.tar'")
    if found := _of_file(path):
        return found
    raise DataError(f"{path}: of no layout that is known; --layout NAME says which it is, of {', '.join(LAYOUTS)}")


def _of_file(path: Path) -> str | None:
    if path.suffix == ".tar":
        return _of_tar(path)
    if path.suffix == ".parquet":
        return _of_parquet(path)
    return _of_json(path) if path.suffix in _JSON_TYPES else None


def _of_folder(path: Path) -> str | None:
    """A folder that has folders with pictures in them."""
    folders = (entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith("."))
    files = (file for folder in folders for file in folder.iterdir())
    return "imagenet" if any(file.suffix.lower() in FOLDER_IMAGE_TYPES for file in files) else None


def _of_tar(path: Path) -> str | None:
    """By the types of the first members: pictures, or texts alone."""
    types: set[str] = set()
    with path.open("rb") as file:
        try:
            for member in islice(walk_tar(file, str(path)), _LOOKED_AT):
                if not is_hidden(member):
                    types.add(split_name(member)[1])
        except TarError:
            if not types:
                raise
    if types & set(IMAGE_TYPES):
        return "webdataset"
    return "tar_text" if CAPTION_TYPES[0] in types else None


def _of_parquet(path: Path) -> str | None:
    with open_parquet(path) as file:
        columns = set(file.schema_arrow.names)
    if columns >= set(CODES_COLUMNS):
        return "codes"
    return "parquet_text" if columns & set(TEXT_COLUMNS) else None


def _of_json(path: Path) -> str | None:
    """By the keys of the first entry that can be read."""
    with path.open("rb") as file:
        for start, length, form in islice(entries(path), _LOOKED_AT):
            file.seek(start)
            try:
                entry = parse_entry(file.read(length), form, str(path))
            except SampleError:
                continue
            keys = entry if form != MEMBER and isinstance(entry, dict) else {}
            return "llava" if "conversations" in keys else "sequences" if "frames" in keys else None
    return None
