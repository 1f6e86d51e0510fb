"""Checksums of a checkpoint's files: a flipped bit, a short, missing or foreign file never loads silently.

They lie in SHA256SUMS, in the format of the sha256sum command, so that `sha256sum -c SHA256SUMS` checks them too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from showo.errors import CheckpointError
from showo.files import atomic_write_text
from showo.model.dcp import METADATA_NAME

SUMS_NAME = "SHA256SUMS"
_CHUNK = 1024 * 1024


def write_checksums(folder: Path) -> None:
    """Notes the checksums of all files that the folder holds now."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    atomic_write_text(folder / SUMS_NAME, "".join(lines))


def check_checksums(folder: Path) -> None:
    """Raises CheckpointError, which names the file, where the folder does not hold exactly what was noted."""
    sums = folder / SUMS_NAME
    try:
        *lines, rest = sums.read_text(encoding="utf-8").split("\n")
        noted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if rest or not noted:
            raise ValueError("it is cut off")
    except FileNotFoundError:
        hint = f"if you trust it, run there: sha256sum $(find * -type f) > {SUMS_NAME}"
        raise CheckpointError(f"{folder} has no {SUMS_NAME}; {hint}") from None
    except ValueError as error:
        raise CheckpointError(f"{sums} is damaged") from error
    found = _files(folder)
    for name in sorted({*noted, *found}):
        if name not in found:
            raise CheckpointError(f"{folder / name} is missing")
        if name not in noted:
            raise CheckpointError(f"{folder / name} is not among the files of {sums}")
        if _sha256(folder / name) != noted[name]:
            raise CheckpointError(f"{folder / name} is damaged: its checksum is not that of {SUMS_NAME}")


def _files(folder: Path) -> list[str]:
    """All files below the folder, but for the checksums and hidden ones, which file systems and desktops add.

    The hidden file of DCP is one of the checkpoint's own.
    """
    paths = (
        path for path in folder.rglob("*") if path.is_file() and (path.name[0] != "." or path.name == METADATA_NAME)
    )
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {SUMS_NAME})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
