"""Entries of JSON files, and the pictures that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from showo.data.index import open_index
from showo.data.json_scan import MEMBER, parse_entry, scan_entries
from showo.data.open_files import OpenFiles
from showo.data.patterns import Folder
from showo.data.sample import Picture
from showo.errors import DataError, SampleError
from showo.files import local_path

_LOOKED_AT = 10  # first entries, of which one at least must be as expected


class JsonSamples:
    """Entries by number. images: the folder that paths of pictures begin in; "": that of the JSON file.

    Raises DataError where not one of the first entries of a file is an object with the key `needs`.
    """

    def __init__(self, paths: Sequence[Path], images: str, needs: str, cache: Path) -> None:
        self.files = OpenFiles(open_index(paths, scan_entries, cache))
        self.folders = [Folder(Path(local_path(images)) if images else path.parent) for path in paths]
        for file, path in enumerate(paths):
            self._check_kind(file, path, needs)

    def __len__(self) -> int:
        return len(self.files.index)

    def read(self, number: int) -> tuple[str, Folder, Any]:
        """Where an entry is, as "file: byte 12", the folder of its pictures, and its value.

        Raises SampleError where the entry is damaged, and DataError where the file has changed.
        """
        file, (start, length, form) = self.files.index.locate(number)
        origin = f"{self.files.index.files[file]}: byte {start}"
        entry = parse_entry(self.files.read(file, start, length, origin), form, origin)
        if form == MEMBER or not isinstance(entry, dict):
            raise SampleError(f"{origin}: expected an object, got {entry!r:.60}", "damaged entry")
        return origin, self.folders[file], entry

    def _check_kind(self, file: int, path: Path, needs: str) -> None:
        first, end = self.files.index.starts[file : file + 2].tolist()
        problem = "it has no entries"
        for number in range(first, min(end, first + _LOOKED_AT)):
            try:
                _, _, entry = self.read(number)
                if needs in entry:
                    return
                problem = f"its first entry has {', '.join(entry) or 'nothing'}"
            except SampleError as error:
                problem = str(error)
        raise DataError(f"{path}: expected entries with {needs!r}, but {problem}")


def picture(folder: Folder, name: object, origin: str) -> Picture:
    """A picture that an entry names. Raises SampleError for a path that leaves the folder."""
    path = folder.file(name, origin)
    return Picture(f"{origin}: {path}", path=path)
