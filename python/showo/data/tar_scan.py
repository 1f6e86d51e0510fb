"""Where the samples of a tar begin and end: the files of one key follow one another, as WebDataset wants.

A record is (start, end, damage): the bytes of the sample with the headers of its files, which is all that it takes to
read it, and the byte at which the archive was found damaged, or -1. The rule for a damaged archive: samples before the
damage count as they are; the sample in which it lies, and all that seem to follow, are broken, each for itself. They
are not used although many may be whole, since what looks like a header there may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from showo.data.index import Part
from showo.data.tar import Member, TarError, walk_rest, walk_tar
from showo.errors import DataError

IMAGE_TYPES = ("png", "jpg", "jpeg", "webp")
CAPTION_TYPES = ("txt", "json")

SOUND = -1  # in place of the byte of the damage


def is_hidden(member: Member) -> bool:
    """Folders, names without an extension, and hidden files (macOS adds "._x.png" beside "x.png") are no data."""
    name = PurePosixPath(member.name).name
    return member.kind == "folder" or name.startswith(".") or "." not in name


def split_name(member: Member) -> tuple[str, str]:
    """Key and type of a member: "a/x.PNG" is the "png" of "a/x"."""
    key, _, extension = member.name.rpartition(".")
    return key, extension.lower()


def scan_pairs(path: Path) -> Part:
    """Pictures with what belongs to them: the adjacent files of one key, of which one is a picture or a caption."""
    return _scan(path, lambda member: split_name(member)[0], (*IMAGE_TYPES, *CAPTION_TYPES), _has_picture_and_caption)


def scan_texts(path: Path) -> Part:
    """Texts: every .txt file."""
    return _scan(path, lambda member: member.name, ("txt",), lambda types: True)


def _has_picture_and_caption(types: set[str]) -> bool:
    return not types.isdisjoint(IMAGE_TYPES) and not types.isdisjoint(CAPTION_TYPES)


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str
    start: int
    end: int
    types: set[str] = field(default_factory=set)


def _groups(members: Iterator[Member], key_of: Callable[[Member], str], types: tuple[str, ...]) -> Iterator[_Group]:
    """Groups as far as the members go; where their walk fails, the last group before the failure comes first."""
    group: _Group | None = None
    try:
        for member in members:
            if is_hidden(member) or split_name(member)[1] not in types:
                continue
            if group is None or group.key != key_of(member):
                if group is not None:
                    yield group
                group = _Group(key_of(member), member.start, member.end)
            group.end = member.end
            group.types.add(split_name(member)[1])
    except TarError:
        if group is not None:
            yield group
        raise
    if group is not None:
        yield group


def _scan(
    path: Path, key_of: Callable[[Member], str], types: tuple[str, ...], whole: Callable[[set[str]], bool]
) -> Part:
    """types: of the members that make a sample. whole: whether members of these types are a complete sample."""
    if not path.is_file():
        raise DataError(f"{path}: no file; expected a tar")
    records: list[tuple[int, int, int]] = []
    last: _Group | None = None
    with path.open("rb") as file:
        try:
            for last in _groups(walk_tar(file, str(path)), key_of, types):
                records.append((last.start, last.end, SOUND))
        except TarError as error:
            if error.offset == 0:  # nothing says that this is a tar at all
                raise
            start = error.offset
            if last is not None and not whole(last.types):
                start = records.pop()[0]
            records.append((start, error.offset, error.offset))
            behind = _groups(_members_behind(file, path, error.offset), key_of, types)
            for number, group in enumerate(behind):
                if number or whole(group.types):  # else the rest of the sample in which the damage lies
                    records.append((group.start, group.end, error.offset))
    return Part.of(records, 3)


def _members_behind(file: BinaryIO, path: Path, damage: int) -> Iterator[Member]:
    """What looks like members behind a damaged place, and behind those that follow it."""
    while True:
        try:
            yield from walk_rest(file, str(path), damage)
            return
        except TarError as error:
            damage = error.offset
