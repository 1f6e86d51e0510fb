"""Which files are meant: patterns with braces and globs, and paths that must not leave their folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from showo.errors import DataError, MissingDataError, SampleError
from showo.files import local_path

MAX_FILES = 100_000  # that the braces of one pattern may stand for

_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")


def find_paths(patterns: Sequence[str], key: str = "data") -> list[Path]:
    """Expands `{0000..0009}`, `{a,b}` and globs; "bundled:" at the beginning means the package's own data.

    Raises MissingDataError, which begins with `key`, where the pattern, or one of those that its braces stand for,
    matches nothing. Only local files: nothing is downloaded or executed.
    """
    paths: list[Path] = []
    for pattern in patterns:
        for expanded in expand_braces(pattern):
            base = str(local_path(expanded))
            found = [Path(base)] if os.path.isfile(base) else sorted(Path(p) for p in glob.glob(base))
            if not found:
                also = "" if expanded == pattern else f", which {pattern!r} stands for"
                raise MissingDataError(f"{key}: no file matches {expanded!r}{also}")
            paths += found
    return paths


def expand_braces(pattern: str) -> list[str]:
    """What the braces of a pattern stand for, as in a shell: "x-{08..10}" is x-08, x-09, x-10; "{a,b}x" is ax, bx.

    Raises DataError for a range that runs downwards, and for more than MAX_FILES names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    ends = expand_braces(pattern[match.end() :])
    if match[3] is not None:
        choices = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise DataError(f"data: {pattern!r}: the range {match[0]} is empty")
        if (last - first + 1) * len(ends) > MAX_FILES:
            raise DataError(f"data: {pattern!r} stands for more than {MAX_FILES} files")
        width = max(len(match[1]), len(match[2])) if match[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    return [pattern[: match.start()] + choice + end for choice in choices for end in ends]


class Folder:
    """A folder that data may name files of, and no other files: what it names may come from anywhere."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise MissingDataError(f"{path}: no such folder; expected the folder that the paths of pictures begin in")
        self.path = path
        self._real = os.path.realpath(path)

    def file(self, name: object, origin: str) -> Path:
        """The path of the file that data call `name`; whether it is there is for the reader to find out.

        Raises SampleError, which begins with `origin`, for a name that is no relative path, leads upwards, or ends
        outside the folder by a symbolic link.
        """
        if not isinstance(name, str) or not name or "\0" in name:
            raise SampleError(f"{origin}: expected the path of a picture, got {name!r}", "wrong path")
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise SampleError(f"{origin}: {name!r} is no path within {self.path}", "path outside its folder")
        path = self.path / pure
        real = os.path.realpath(path)
        if os.path.commonpath([real, self._real]) != self._real:
            raise SampleError(f"{origin}: {name!r} leads out of {self.path} by a link", "path outside its folder")
        return path
