"""What a command writes: checked before the work, so that hours of it cannot end in a file that cannot be."""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from showo.errors import OutputError

# The longest side in pixels that a format, or the library that writes it, can have.
MAX_SIDES = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500, ".gif": 65535}
_ROOM = 64  # bytes of a path that stay free: files are written under another name first, which may be longer


def check_file(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """OutputError where a file of one of these suffixes cannot be written; `option` is what the user gave it by."""
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{option} {path}: the name must end in {' or '.join(suffixes)}")
    if os.path.isdir(path):
        raise OutputError(f"{option} {path} is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{option} {path} is no regular file")
    _check_place(option, path, path)


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one file, else so many: out-0.png, out-1.png, ..."""
    return [path] if count == 1 else [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(count)]


def check_folder(option: str, path: Path) -> None:
    """OutputError where a folder cannot be made, or is there but cannot be written to."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise OutputError(f"{option} {path} is a file; expected a folder")
    _check_place(option, path, path / "file")


def check_sides(option: str, path: Path, size: tuple[int, int]) -> None:
    """OutputError where the picture's format cannot hold `size` (width, height)."""
    limit = MAX_SIDES.get(path.suffix.lower())
    if limit is not None and max(size) > limit:
        raise OutputError(
            f"{option} {path}: a picture of {size[0]}x{size[1]} pixels, but {path.suffix} ends at {limit}; choose .png"
        )


def say(text: str, end: str = "\n") -> None:
    """Print a line of the command's result, or a piece of one.

    Raises OutputError where it cannot be written, on a full disk, say.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has seen enough; typer ends the command quietly
            raise
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def say_files(made: Mapping[str, Path | Sequence[Path] | None], as_json: bool, **told: object) -> None:
    """Print what a command has written: a line for each file; or all of it, and what is told, as one of JSON."""
    named = {name: [file] if isinstance(file, Path) else list(file or []) for name, file in made.items()}
    if not as_json:
        for file in itertools.chain(*named.values()):
            say(str(file))
        return
    texts = {name: [str(file) for file in files] for name, files in named.items()}
    alone = {name: files[0] if isinstance(made[name], Path) else files for name, files in texts.items() if files}
    say(json.dumps({**alone, **told}))


def _check_place(option: str, path: Path, file: Path) -> None:
    """OutputError, which names `path`, where `file` cannot be made. Missing folders are made later, not here."""
    real = os.path.realpath(file)
    if os.path.islink(real):
        raise OutputError(f"{option} {path}: symbolic links that lead in a circle")
    folder = Path(real).parent
    while not os.path.exists(folder):
        folder = folder.parent
    try:
        longest_name, longest_path = os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{option} {path}: {folder} is not a writable folder ({error.strerror})") from error
    for what, length, limit in (
        ("a name", max(len(os.fsencode(part)) for part in Path(real).relative_to(folder).parts), longest_name),
        ("a path", len(os.fsencode(real)), longest_path - _ROOM),
    ):
        if length > limit:
            raise OutputError(f"{option} {str(path)[:60]}...: {what} of {length} bytes; {limit} fit here")
