"""The tar walker: whole archives give what tarfile gives, damaged ones an error, never fewer members."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from showo.data.tar import BLOCK, MAX_EXTENSION_BYTES, Member, walk_tar
from showo.errors import DataError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a folder with a long name/" * 8  # beyond the 100 bytes of a header; ustar splits it into prefix and name


def archive(kind: str, names: tuple[str, ...] = ("a.txt", "b/\u00e4.txt", f"{LONG}c.txt", "d.txt")) -> bytes:
    """An archive of files of 0 to 1,500 bytes without a zero among them."""
    buffer, random_ = io.BytesIO(), random.Random(kind)
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for name, size in zip(names, (7, 0, 512, 1500)):
            data = bytes(random_.randrange(1, 256) for _ in range(size))
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1e9 + 0.5  # PAX writes the half second into an extended header
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def contents(data: bytes) -> list[tuple[str, str, bytes]]:
    return [(m.name, m.kind, data[m.offset : m.offset + m.size]) for m in walk_tar(io.BytesIO(data), "x.tar")]


def header_blocks(data: bytes) -> list[int]:
    """Offsets of all headers, those before an extended name too, and of the blocks at the end."""
    offsets, at = [], 0
    while at < len(data):
        offsets.append(at)
        size = data[at + 124 : at + 135]
        at += BLOCK + (-(-int(size, 8) // BLOCK) * BLOCK if size.strip(b"\0") else 0)
    return offsets


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_archives_are_read_as_tarfile_reads_them(kind: str) -> None:
    data = archive(kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in walk_tar(io.BytesIO(data), "x.tar")] == expected
    assert contents(data[: len(data) // BLOCK * BLOCK].rstrip(b"\0") + b"\0" * 3000)[-1] == contents(data)[-1]


@pytest.mark.parametrize("form", ["gnu", "ustar", "pax", "oldgnu"])
def test_archives_of_the_tar_command(tmp_path: Path, form: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar command")
    folder = tmp_path / "in" / LONG
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"one")
    (tmp_path / "in" / "b.txt").write_bytes(b"two")
    command = ["tar", "--format", form, "-C", str(tmp_path / "in"), "-cf", str(tmp_path / "x.tar"), "."]
    subprocess.run(command, check=True)
    found = {n.removeprefix("./"): d for n, kind, d in contents((tmp_path / "x.tar").read_bytes()) if kind == "file"}
    assert found == {f"{LONG}a.txt": b"one", "b.txt": b"two"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_archive_is_an_error_or_whole(kind: str) -> None:
    data, random_ = archive(kind), random.Random(kind)
    whole, end = contents(data), len(data.rstrip(b"\0"))
    refused = 0
    for cut in [*(random_.randrange(len(data)) for _ in range(600)), *range(0, len(data), BLOCK)]:
        try:
            assert contents(data[:cut]) == whole, cut
        except DataError:
            refused += 1
        else:
            assert cut >= end + 2 * BLOCK, cut  # what was cut off only filled the last record
    assert refused > 200


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_in_a_header_is_an_error_or_harmless(kind: str) -> None:
    data, random_ = archive(kind), random.Random(kind)
    whole, headers = contents(data), header_blocks(data)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        damaged[random_.choice(headers) + random_.randrange(BLOCK)] ^= 1 << random_.randrange(8)
        try:
            assert contents(bytes(damaged)) == whole
        except DataError:
            refused += 1
    assert refused > 590  # a space of the checksum's field may become a zero


def header(name: str = "x.txt", type_: bytes = b"0", size: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode("latin-1")
    block[124 : 124 + len(size)] = size
    block[148:157] = b" " * 8 + type_
    block[257:265] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(type_: bytes, payload: bytes) -> bytes:
    return header("ext", type_, b"%o" % len(payload)) + payload + b"\0" * (-len(payload) % BLOCK)


END = b"\0" * 2 * BLOCK
ONE = header() + END


def zeroed(data: bytes, at: int) -> bytes:
    return data[:at] + b"\0" * BLOCK + data[at + BLOCK :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "at byte 0 512 bytes more are expected, but the file has 0 in all"),
        (b"<!DOCTYPE html>" * 100, "at byte 0 no header of a ustar"),
        (b"\x1f\x8b" + b"x" * 600, "at byte 0 gzip data begins; unpack it first"),
        (archive("ustar") + archive("gnu"), "the archive seems to end, but other bytes follow at byte 10240"),
        (ONE + b"garbage", f"at byte {BLOCK} the archive seems to end, but other bytes follow at byte {len(ONE)}"),
        (ONE[:-BLOCK], "at byte 512 1024 bytes more are expected, but the file has 1024 in all"),
        (header() + bytes(BLOCK) + header() + END, f"at byte {BLOCK} the archive seems to end"),
        (zeroed(archive("gnu"), 0), "at byte 0 the archive seems to end"),
        (header(size=b"2001") + END, "begins 'x.txt' with 1025 bytes, of which 1024 are there"),
        (header(size=b"77777777777") + END, "with 8589934591 bytes"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "of which 1024 are there"),
        (header(size=b"\xff" * 12) + END, "the size is no number"),
        (header(size=b"-1") + END, "the size is no number"),
        (header(size=b"12 3") + END, "the size is no number"),
        (header(type_=b"5", size=b"1") + END, "the folder 'x.txt' has 1 bytes"),
        (header("../x.txt") + END, "expected a path within"),
        (header("a/../../x.txt") + END, "expected a path within"),
        (header("/etc/passwd.txt") + END, "expected a path within"),
        (header("") + END, "expected a path within"),
        (header("\xe4.txt") + END, "a name is not UTF-8"),
        (header(type_=b"S") + END, "type b'S'"),
        (header(type_=b"V") + END, "type b'V'"),
        (header(magic=bytes(8)) + END, "no header of a ustar"),
        (extended(b"L", b"name\0") + END, "without the member that it belongs to"),
        (extended(b"L", b"a\0b\0") + ONE, "expected a path within"),
        (extended(b"x", b"30 path=short\n") + ONE, "extended header cannot be read"),
        (extended(b"x", b"0 path=zero\n") + ONE, "extended header cannot be read"),
        (extended(b"x", b"12 size=-12\n") + ONE, "the size is no number"),
        (extended(b"x", b"15 size=999999\n") + ONE, "with 999999 bytes"),
        (extended(b"x", b"22 GNU.sparse.major=1\n") + ONE, "a sparse file begins"),
        (extended(b"x", b"12 path=\xff\xff\xff\n") + ONE, "a name is not UTF-8"),
        (extended(b"g", b"11 size=12\n") + ONE, "a global header gives all members the same"),
        (header(type_=b"x", size=b"%o" % (MAX_EXTENSION_BYTES + 1)) + END, "more than 1048576"),
    ],
)
def test_what_is_not_whole_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=r"^x\.tar: damaged or no tar archive: at byte") as info:
        contents(data)
    assert reason in str(info.value)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_zeroed_header_block_is_an_error(at: int) -> None:
    data = archive("ustar")
    with pytest.raises(DataError, match="other bytes follow"):
        contents(zeroed(data, header_blocks(data)[at]))


@pytest.mark.parametrize(
    ("type_", "kind"),
    [(b"1", "hard link"), (b"2", "symbolic link"), (b"3", "device"), (b"6", "FIFO"), (b"5", "folder"), (b"7", "file")],
)
def test_other_members_are_named_by_kind(type_: bytes, kind: str) -> None:
    assert list(walk_tar(io.BytesIO(header(type_=type_) + END), "x")) == [Member("x.txt", kind, 0, BLOCK, 0)]


def test_pax_and_gnu_names_and_sizes_take_the_place_of_the_headers() -> None:
    data = extended(b"g", b"18 comment=global\n") + extended(b"x", b"14 path=y.txt\n12 size=513\n")
    member = header(size=b"1") + b"!" * 513 + b"\0" * 511
    assert contents(data + member + END) == [("y.txt", "file", b"!" * 513)]
    assert contents(extended(b"L", b"z" * 300 + b"\0") + ONE) == [("z" * 300, "file", b"")]


def test_a_file_that_shrinks_meanwhile_is_an_error() -> None:
    file = io.BytesIO(archive("ustar"))
    walk = walk_tar(file, "x.tar")
    next(walk)
    file.truncate(BLOCK)
    with pytest.raises(DataError, match="but the file has 512 in all"):
        list(walk)
