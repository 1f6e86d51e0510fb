"""Where the entries of JSON files lie, so that one can be read without the others.

Three forms: a list of entries, an object whose members are the entries ("key": value), and one entry a line (.jsonl).
Strings and brackets are told apart, entries are not looked into: what is wrong inside one shows when it is read.
A file that is cut off has its last entry marked as broken.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from showo.data.index import Part
from showo.errors import DataError, SampleError

LINE_TYPES = (".jsonl", ".ndjson")
VALUE, MEMBER, CUT = 0, 1, 2  # what the bytes of an entry are: a value, a member of an object, or cut off

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"


def scan_entries(path: Path) -> Part:
    """Records (start, length, form) of a file's entries; the form is VALUE, MEMBER or CUT."""
    return Part.of(entries(path), 3)


def entries(path: Path) -> Iterator[tuple[int, int, int]]:
    """The records of `scan_entries`, one by one. Raises DataError where the file is no JSON of the three forms."""
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; expected JSON")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from _lines(data) if path.suffix in LINE_TYPES else _container(path, data)


def _lines(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    start = 0
    while line := data.readline():
        if line.strip(_SPACE):
            yield start, len(line), VALUE
        start += len(line)


def _container(path: Path, data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    first = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*([\[{])").match(data)
    if first is None:
        raise DataError(f"{path}: no JSON list or object begins; one entry a line belongs into a file named .jsonl")
    form = VALUE if first[1] == b"[" else MEMBER
    depth, start = 0, first.end()
    for token in _TOKEN.finditer(data, first.start(1)):
        byte = token[0][:1]
        if byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
        if depth == 0 or (depth == 1 and byte == b","):
            if depth == 1 or data[start : token.start()].strip(_SPACE):  # else the container is empty
                yield start, token.start() - start, form
            start = token.end()
        if depth == 0:
            if rest := data[start:].strip(_SPACE):
                raise DataError(f"{path}: the JSON ends at byte {start}, but more follows: {rest[:20]!r}")
            return
    yield start, len(data) - start, CUT


def parse_entry(data: bytes, form: int, origin: str) -> Any:
    """The value of an entry; of a member, (key, value).

    Raises SampleError where the entry is cut off or no JSON, and for text that is no valid Unicode.
    """
    if form == CUT:
        raise SampleError(f"{origin}: the file ends within this entry; fetch the file again", "cut off")
    try:
        value = json.loads(b"{" + data + b"}" if form == MEMBER else data)
        if b"\\ud" in data.lower():  # "\ud800" alone stands for no character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{origin}: not to be read as JSON: {error}", "damaged entry") from error
    if form == MEMBER:
        ((key, value),) = value.items() if len(value) == 1 else [("", None)]
        return key, value
    return value
