"""A file of arrays that are mapped into memory, not read: the arrays one after another, then a footer that says where.

    the arrays, each at a multiple of 64 | footer, JSON | its length, 8 bytes | CRC-32 of all that, 4 | a mark, 4 bytes

The footer comes last, so that arrays of any size are written in one pass. Numbers are little-endian.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from showo.files import atomic_path

_MARK = b"arr1"
_LENGTH_BYTES = 8
_TAIL = struct.Struct("<I4s")  # what follows the length
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
        entries: dict[str, Any] = {}
        checksum = 0
        for name, pieces in arrays.items():
            checksum = _write(file, bytes(-file.tell() % _ALIGNMENT), checksum)
            start, length = file.tell(), 0
            for piece in pieces:
                length += len(piece)
                checksum = _write(file, np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data, checksum)
            entries[name] = {"start": start, "shape": [length, *piece.shape[1:]], "dtype": piece.dtype.str}
        footer = json.dumps({"about": dict(about), "arrays": entries}).encode()
        checksum = _write(file, footer + len(footer).to_bytes(_LENGTH_BYTES, "little"), checksum)
        file.write(_TAIL.pack(checksum, _MARK))


def _write(file: BinaryIO, data: bytes | memoryview, checksum: int) -> int:
    file.write(data)
    return zlib.crc32(data, checksum)


def read_arrays(path: Path, *, check: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_arrays` was told about the arrays, and the arrays, mapped read-only.

    check: whether to read all bytes once and to compare their checksum.

    Raises:
        DamagedError: the file is not as it was written.
        OSError: the file is not there, or cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - _TAIL.size
        if end < _LENGTH_BYTES:
            raise DamagedError(f"{path}: too short")
        file.seek(end - _LENGTH_BYTES)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        checksum, mark = _TAIL.unpack(file.read())
        if mark != _MARK:
            raise DamagedError(f"{path}: the end is missing")
        if check and _checksum(file, end) != checksum:
            raise DamagedError(f"{path}: the bytes do not fit their checksum")
        file.seek(end - _LENGTH_BYTES - length)
        footer = json.loads(file.read(length))
    return footer["about"], {name: _mapped(path, entry) for name, entry in footer["arrays"].items()}


def _mapped(path: Path, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    if not math.prod(shape):  # nothing cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", entry["start"], shape)


def _checksum(file: BinaryIO, end: int) -> int:
    file.seek(0)
    checksum = 0
    for start in range(0, end, _CHUNK):
        checksum = zlib.crc32(file.read(min(_CHUNK, end - start)), checksum)
    return checksum
