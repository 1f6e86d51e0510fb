"""Tar archives, read strictly: a damaged archive is an error that names the place, never a shorter archive.

Python's tarfile takes a header that it cannot read for the end of the archive, so that a cut or damaged shard just
holds fewer samples. Here an archive is whole only if its headers follow one another, each with a right checksum, up to
two blocks of zeros, with nothing but zeros behind them. Formats: POSIX ustar and PAX, and GNU tar.

Tar has checksums for headers only. Damage within a member's bytes, or within those of an extended (PAX or GNU) name,
cannot be seen here; the decoder of the picture or of the text may see it, or may not.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from showo.errors import DataError
from showo.files import atomic_path

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024  # of one extended header: names, times and attributes of a file
_CHUNK = 1024 * 1024

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # "contiguous": POSIX lets a reader take it for a plain file
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "FIFO",
}
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"  # magic and version
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"PK": "zip"}
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_PAX_RECORD = re.compile(rb"([1-9]\d{0,9}) ([^=\n]+)=")
_PAX_PLACE_KEYS = ("path", "size", "linkpath")


class TarError(DataError):
    """An archive that is not whole. offset: the byte of the archive at which that shows."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, offset)
        self.offset = offset

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Member:
    """One entry of an archive: its bytes are `size` bytes from `offset` of the archive on.

    kind: "file", "folder", "hard link", "symbolic link", "device" or "FIFO"; only a file has bytes.
    start: where its header begins, or the extended header before that.
    """

    name: str
    kind: str
    start: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where its bytes end; the next header begins at the next multiple of a block."""
        return self.offset + self.size


def walk_tar(file: BinaryIO, source: str) -> Iterator[Member]:
    """Yields the members of an archive in order, reading headers alone. `source` names the archive in messages.

    Raises TarError with the offset where the archive is not whole, or holds what has no place in a data set (sparse
    files, volumes, names that are absolute, lead upwards or are not UTF-8). Members before that place are yielded
    first: whoever needs a whole archive has to walk to the end before using them.
    """
    walk = _Walk(file, source)
    walk.check_not_compressed()
    return walk.members(0)


def walk_rest(file: BinaryIO, source: str, after: int) -> Iterator[Member]:
    """Yields the members that follow the next header behind byte `after`; none where there is none.

    Raises TarError as `walk_tar`. For a damaged archive, to tell what lies behind the damage: it looks like members
    of the archive, but may as well be the bytes of a member, such as a tar within the tar.
    """
    walk = _Walk(file, source)
    start = walk.find_header(_padded(after + 1))
    return iter(()) if start is None else walk.members(start)


def walk_span(data: bytes, start: int, source: str) -> Iterator[Member]:
    """Yields the members in `data`, which are the bytes of an archive from `start` up to the end of a later member.

    The places of the members are places in `data`; those in messages are places in the archive. Raises TarError.
    """
    return _Walk(io.BytesIO(data), source, base=start).members(0, stop=len(data))


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, bytes) with fixed owner and time: the same input gives the same bytes. Whole or absent.

    Raises OutputError where the operating system refuses.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class _Walk:
    """base: where the file begins in the archive that messages speak of."""

    def __init__(self, file: BinaryIO, source: str, base: int = 0) -> None:
        self.file, self.source, self.base = file, source, base
        self.length = file.seek(0, 2)

    def check_not_compressed(self) -> None:
        self.file.seek(0)
        packed = _COMPRESSED.get(self.file.read(2))
        if packed:
            self.fail(0, f"{packed} data begins; unpack it first")

    def fail(self, offset: int, reason: str) -> NoReturn:
        offset += self.base
        raise TarError(f"{self.source}: damaged or no tar archive: at byte {offset} {reason}", offset)

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        data = self.file.read(size)
        if len(data) != size:
            self.fail(offset, f"{size} bytes more are expected, but the file has {self.file.seek(0, 2)} in all")
        return data

    def find_header(self, at: int) -> int | None:
        """The first place from `at` on, a multiple of a block, where a header seems to begin."""
        for chunk in range(at, self.length - BLOCK + 1, _CHUNK):
            self.file.seek(chunk)
            data = self.file.read(_CHUNK)
            for place in range(0, len(data) - BLOCK + 1, BLOCK):
                if data[place + 257 : place + 262] == _POSIX[:5]:
                    return chunk + place
        return None

    def members(self, at: int, stop: int | None = None) -> Iterator[Member]:
        """From `at` up to `stop`, or to the end of the archive, which then must be marked as such."""
        start = at
        extended: dict[str, str] = {}  # what extended headers say about the next member
        while (stop is None or at < stop) and any(block := self.read(at, BLOCK)):
            self.check_header(at, block)
            kind, size = block[156:157], self.number(at, "size", block[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                extended.update(self.extension(at, kind, size))
            else:
                member = self.member(at, start, block, size, extended)
                yield member
                size, extended = member.size, {}
                start = _padded(member.end)
            at += BLOCK + _padded(size)
        if extended:
            self.fail(at, "the archive ends after an extended header without the member that it belongs to")
        if stop is None:
            self.check_end(at)

    def check_header(self, at: int, block: bytes) -> None:
        if block[257:265] not in (_POSIX, _GNU):
            packed = _COMPRESSED.get(block[:2]) if at == 0 else None
            self.fail(
                at, f"{packed} data begins; unpack it first" if packed else "no header of a ustar or GNU tar begins"
            )
        checksum = sum(block[:148]) + sum(b" " * 8) + sum(block[156:])  # its own field counts as spaces
        if self.number(at, "checksum", block[148:156]) != checksum:
            self.fail(at, "the header does not fit its checksum")

    def number(self, at: int, what: str, field: bytes) -> int:
        """Octal digits, or, after a first byte of 0x80, a binary number (GNU, for sizes from 8 GiB on)."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        match = _OCTAL.fullmatch(field)
        if match is None:
            self.fail(at, f"the {what} is no number: {field!r}")
        return int(match[1], 8)

    def extension(self, at: int, kind: bytes, size: int) -> dict[str, str]:
        """What a PAX or GNU header with a payload of `size` bytes says about the member that follows it."""
        if size > MAX_EXTENSION_BYTES:
            self.fail(at, f"an extended header has {size} bytes, more than {MAX_EXTENSION_BYTES}")
        data = self.read(at + BLOCK, size)
        if kind == b"K":  # a link's target, which nobody follows
            return {}
        if kind == b"L":
            return {"path": self.text(at, data.removesuffix(b"\0"))}
        records = self.pax_records(at, data)
        if any(key.startswith("GNU.sparse") for key in records):
            self.fail(at, "a sparse file begins, which is not read here")
        if kind == b"g":
            if any(key in records for key in _PAX_PLACE_KEYS):
                self.fail(at, "a global header gives all members the same name or size")
            return {}
        return {key: value for key, value in records.items() if key in _PAX_PLACE_KEYS}

    def pax_records(self, at: int, data: bytes) -> dict[str, str]:
        """Records "length key=value\\n"; the length counts the whole record."""
        records, start = {}, 0
        while start < len(data):
            match = _PAX_RECORD.match(data, start)
            end = start + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
                self.fail(at, "an extended header cannot be read")
            records[self.text(at, match[2])] = self.text(at, data[match.end() : end - 1])
            start = end
        return records

    def member(self, at: int, start: int, block: bytes, size: int, extended: dict[str, str]) -> Member:
        kind = _KINDS.get(block[156:157])
        if kind is None:
            self.fail(at, f"an entry of type {block[156:157]!r} begins, which is not read here")
        if "size" in extended:
            if not re.fullmatch(r"\d{1,19}", extended["size"]):
                self.fail(at, f"the size is no number: {extended['size']!r}")
            size = int(extended["size"])
        if "path" in extended:
            name = extended["path"]
        else:
            prefix = block[345:500].partition(b"\0")[0] if block[257:265] == _POSIX else b""
            name = self.text(at, (prefix + b"/" if prefix else b"") + block[:100].partition(b"\0")[0])
        path = PurePosixPath(name)
        if (not path.parts and kind != "folder") or path.is_absolute() or ".." in path.parts or "\0" in name:
            self.fail(at, f"a member has the name {name!r}; expected a path within the archive")
        if size and kind != "file":
            self.fail(at, f"the {kind} {name!r} has {size} bytes")
        offset = at + BLOCK
        if offset + size > self.length:
            self.fail(at, f"begins {name!r} with {size} bytes, of which {self.length - offset} are there")
        return Member(name, kind, start, offset, size)

    def text(self, at: int, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(at, f"a name is not UTF-8: {data[:80]!r}")

    def check_end(self, at: int) -> None:
        """Two blocks of zeros, then at most more zeros, with which writers fill a record."""
        end = max(self.length, at + 2 * BLOCK)
        for start in range(at, end, _CHUNK):
            data = self.read(start, min(_CHUNK, end - start))
            rest = data.lstrip(b"\0")
            if rest:
                found = start + len(data) - len(rest)
                self.fail(at, f"the archive seems to end, but other bytes follow at byte {found}")
