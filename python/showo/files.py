"""Files and folders that are whole or absent, also after a power cut.

They are written under a temporary name beside the target, brought to the disk (fsync), then renamed; the folder that
holds the name is brought to the disk last.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

from showo.errors import OutputError

BUNDLED = "bundled:"
_MANY = 200  # files are brought to the disk all at once, as waiting for each takes milliseconds


def local_path(source: str | Path) -> str | Path:
    """`source`, or where it lies if it begins with "bundled:", which means the package's own data and models."""
    if isinstance(source, str) and source.startswith(BUNDLED):
        return package_path("assets") / source.removeprefix(BUNDLED)
    return source


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it takes the place of `path`, on failure it goes.

    The suffix is kept, so that libraries which choose a format by suffix still do. A symbolic link stays: the file
    that it points to is written, also if there is none yet.

    Raises:
        OutputError: the operating system refuses (no space, no right, a name too long).
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")  # short, unlike some names
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # some writers make files that only their owner may read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises OutputError where the operating system refuses, or a file is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it gets that name, on failure it goes.

    Nothing that is there is ever deleted: `path` must be absent, or an empty folder.

    Raises:
        OutputError: there is something at `path`, or the operating system refuses (no space, no right).
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = 0o666 & ~_umask()  # some writers make files that only their owner may read
        for file in temporary.rglob("*"):
            if file.is_file():
                os.chmod(file, mode)
        _sync_folder(temporary)
        os.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Give the folder `temporary` the name `path`, beside it, once it is on the disk with all that it holds.

    For names that belong to the program: what has the name `path` before is deleted.
    """
    _sync_folder(temporary)
    remove_folder(path)
    os.rename(temporary, path)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder, if there is one. It loses its name first: a folder of that name is never half empty."""
    doomed = path.with_name(path.name + ".old")
    shutil.rmtree(doomed, ignore_errors=True)  # of a process that was killed
    if path.exists():
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def package_path(name: str) -> Path:
    """Where a file or folder of the installed package lies, e.g. "assets/tiny"."""
    return Path(str(resources.files("showo"))) / name


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Waits until a folder with all that is below it is on the disk."""
    entries = [*folder.rglob("*"), folder]
    if len(entries) > _MANY:
        os.sync()
    else:
        for entry in entries:
            _sync(entry)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
