"""A file of arrays that are mapped into memory, not read: the arrays one after another, then a footer that says where.

    array bytes, each at a multiple of 64 | footer, JSON | its length, 8 bytes, little-endian | the mark, 8 bytes

The footer comes last, so that arrays of any size are written in one pass, and their checksum (CRC-32) with them.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from showo.files import atomic_path

_MARK = b"showoarr"
_ALIGNMENT = 64
_CHUNK = 1 << 24


class DamagedError(ValueError):
    """A file of arrays that is not as it was written; the message says why."""


def write_arrays(path: Path, arrays: Mapping[str, Iterable[np.ndarray]], about: Mapping[str, Any]) -> None:
    """Write arrays, each given as the pieces that follow one another along its first dimension, and what they are.

    arrays: at least one piece each, which may be made while they are written.
    about: anything that JSON can hold. Raises OutputError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        footer: dict[str, Any] = {"about": dict(about), "arrays": {}}
        checksum = 0
        for name, pieces in arrays.items():
            file.write(bytes(-file.tell() % _ALIGNMENT))
            start, length = file.tell(), 0
            for piece in pieces:
                length += len(piece)
                data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                checksum = zlib.crc32(data.data, checksum)
                file.write(data.data)
            footer["arrays"][name] = {"start": start, "shape": [length, *piece.shape[1:]], "dtype": piece.dtype.str}
        text = json.dumps({**footer, "crc32": checksum}).encode()
        file.write(text + len(text).to_bytes(8, "little") + _MARK)


def read_arrays(path: Path, *, check: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_arrays` was told about the arrays, and the arrays, mapped read-only.

    check: whether to read all bytes once and to compare their checksum.

    Raises:
        DamagedError: the file is not as it was written.
        OSError: the file is not there, or cannot be read.
    """
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        tail = len(_MARK) + 8
        file.seek(max(0, length - tail))
        data = file.read(tail)
        size = int.from_bytes(data[:8], "little")
        if len(data) < tail or data[8:] != _MARK or size > length - tail:
            raise DamagedError(f"{path}: the end is missing")
        file.seek(length - tail - size)
        try:
            footer = json.loads(file.read(size))
            arrays = {name: _mapped(path, entry) for name, entry in footer["arrays"].items()}
            about, expected = footer["about"], footer["crc32"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path}: the footer cannot be read: {error}") from error
    if check and _checksum(arrays) != expected:
        raise DamagedError(f"{path}: the bytes do not fit their checksum")
    return about, arrays


def _mapped(path: Path, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    if not math.prod(shape):  # nothing cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", entry["start"], shape)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    checksum = 0
    for array in arrays.values():
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _CHUNK):
            checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum
