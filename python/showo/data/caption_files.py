"""Captions that lie apart from their pictures, found by the key of the picture.

    .json     a list of entries, or an object {key: caption}
    .jsonl    one entry a line
    .parquet  a row each, as image downloaders and recaptioning jobs write them

An entry has its key as "key", "id" or "image" (a path), and its captions as "caption" or "captions" (a text, or a list
of texts that each fit) or as the first answer of "conversations", as ShareGPT4V has them. A key need not name the
folder or the type of the picture's file: "sam/images/sa_1.jpg" is found for the picture "sa_1".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from showo.data.index import Part, open_index
from showo.data.json_scan import entries, parse_entry
from showo.data.open_files import OpenFiles
from showo.data.parquet import ParquetFiles, open_parquet
from showo.errors import DataError, SampleError

KEYS = ("key", "id", "image")
CAPTIONS = ("caption", "captions", "conversations")
_PARQUET = ".parquet"


class CaptionFiles:
    """Captions of many pictures, in files. Raises DataError where a file is not as above, or holds none at all."""

    def __init__(self, paths: Sequence[Path], cache: Path) -> None:
        self.index = open_index(paths, scan_captions, cache, sort=True)
        self.files, self.tables = OpenFiles(self.index), ParquetFiles(self.index, (*KEYS, *CAPTIONS))

    def find(self, key: str, origin: str) -> Any:
        """The captions of a picture, as they are written. `origin` stands for the picture in messages.

        Raises SampleError where there is none, and where several fit, but none of them by its whole key.
        """
        hashes, wanted = self.index.records[:, 0], _hash(key)
        first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        found = [self._entry(record, origin) for record in self.index.records[first:end].tolist()]
        found = [entry for entry in found if _stem(entry[0]) == _stem(key)]
        found = [entry for entry in found if _without_type(entry[0]) == key] or found
        if not found:
            raise SampleError(f"{origin}: no caption for {key!r} in the files of captions", "no caption")
        if any(captions != found[0][1] for _, captions in found):
            names = ", ".join(repr(name) for name, _ in found)
            raise SampleError(f"{origin}: several captions for {key!r}, those of {names}", "several captions")
        return found[0][1]

    def _entry(self, record: list[int], origin: str) -> tuple[str, Any]:
        _, start, length, form, file = record
        path = self.index.files[file]
        origin = f"{origin}: its caption in {path}"
        if path.suffix == _PARQUET:
            return _key_and_captions(self.tables.row(file, start, length), origin)
        return _key_and_captions(parse_entry(self.files.read(file, start, length, origin), form, origin), origin)


def scan_captions(path: Path) -> Part:
    """Records (hash of the key, start, length, form) of JSON entries, or (hash, row group, row, 0) of parquet rows.

    Entries without a key or a caption are left out: their pictures have no caption.
    """
    part = Part.of(_parquet_records(path) if path.suffix == _PARQUET else _json_records(path), 4)
    if not len(part.records):
        raise DataError(f"{path}: no captions; expected entries with {' or '.join(KEYS)}, and with {CAPTIONS[0]!r}")
    return part


def _json_records(path: Path) -> Iterator[tuple[int, int, int, int]]:
    with path.open("rb") as file:
        for start, length, form in entries(path):
            file.seek(start)
            with suppress(SampleError):
                key, _ = _key_and_captions(parse_entry(file.read(length), form, str(path)), str(path))
                yield _hash(key), start, length, form


def _parquet_records(path: Path) -> Iterator[tuple[int, int, int, int]]:
    with open_parquet(path) as file:
        name = next((name for name in KEYS if name in file.schema_arrow.names), None)
        if name is None or not any(caption in file.schema_arrow.names for caption in CAPTIONS):
            raise DataError(
                f"{path}: columns {file.schema_arrow.names}; expected {' or '.join(KEYS)}, and {CAPTIONS[0]!r}"
            )
        for group in range(file.num_row_groups):
            keys = file.read_row_group(group, columns=[name], use_threads=False).column(name).to_pylist()
            yield from ((_hash(str(key)), group, row, 0) for row, key in enumerate(keys) if key is not None)


def _key_and_captions(entry: Any, origin: str) -> tuple[str, Any]:
    """Raises SampleError where an entry has no key, or nothing that may be a caption."""
    key, captions = entry if isinstance(entry, tuple) else (_key_of(entry), captions_of(entry))
    if not isinstance(key, (str, int)) or not captions:
        raise SampleError(f"{origin}: expected a key and a caption", "no caption")
    return str(key), captions


def _key_of(entry: Any) -> Any:
    values = [entry.get(name) for name in KEYS] if isinstance(entry, dict) else []
    return next((value for value in values if value is not None), None)


def captions_of(entry: Any) -> Any:
    """What stands for a caption in an entry, whatever its type; None where nothing does."""
    if not isinstance(entry, dict):
        return None
    for name in CAPTIONS[:2]:
        if entry.get(name) is not None:
            return entry[name]
    turns = entry.get(CAPTIONS[2])
    turns = turns if isinstance(turns, list) else []
    return next((t.get("value") for t in turns if isinstance(t, dict) and t.get("from") == "gpt"), None)


def _without_type(key: str) -> str:
    path = PurePosixPath(key)
    return str(path.with_suffix("")) if path.suffix[1:].lower() in ("jpg", "jpeg", "png", "webp") else key


def _stem(key: str) -> str:
    return PurePosixPath(_without_type(key)).name


def _hash(key: str) -> int:
    """Of the key without folder and type: 64 bits, so that different keys hardly ever share it; `find` compares."""
    return int.from_bytes(hashlib.blake2b(_stem(key).encode(), digest_size=8).digest(), "little", signed=True)
