"""Readers of WebDataset tar shards, and the order in which training sees their samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from showo.data.patterns import find_paths
from showo.data.tar import walk_tar
from showo.errors import DataError
from showo.pictures import fit, open_image, to_tensor
from showo.seeds import seeded_generator
from showo.text import clean_text

IMAGE_TYPES = ("png", "jpg", "jpeg", "webp")
_MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """A picture's file, undecoded, and its caption, cleaned. `origin` names shard and member in messages."""

    key: str
    image: bytes
    caption: str
    origin: str


def read_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields (key, extension, bytes) of the files of one tar, in order; nothing is unpacked to disk.

    Left out: folders, names without an extension, and hidden files (macOS adds "._x.png" beside "x.png"). Raises
    DataError where the tar is damaged (see `tar`), and for links and devices, whose bytes are not in the tar.
    """
    if not path.is_file():
        raise DataError(f"{path}: no file; expected a tar")
    try:
        with path.open("rb") as file:
            for member in walk_tar(file, str(path)):
                name = PurePosixPath(member.name).name
                if member.kind == "folder" or name.startswith(".") or "." not in name:
                    continue
                if member.kind != "file":
                    raise DataError(f"{path}: {member.name} is a {member.kind}; a shard holds the files themselves")
                if member.size > _MAX_FILE_BYTES:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes, more than {_MAX_FILE_BYTES}")
                file.seek(member.offset)
                key, _, extension = member.name.rpartition(".")
                yield key, extension.lower(), file.read(member.size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_pairs(patterns: Sequence[str]) -> list[Sample]:
    """Image-caption pairs of all shards, captions cleaned (`clean_text`).

    `key.png|jpg|webp` + `key.txt`, adjacent as WebDataset wants. Raises DataError for incomplete pairs, damaged
    shards and captions that are not UTF-8.
    """
    samples: list[Sample] = []
    for path in find_paths(patterns):
        for key, files in groupby(read_files(path), key=itemgetter(0)):
            members = [(extension, data) for _, extension, data in files]
            group = dict(members)
            if len(group) < len(members):
                raise DataError(f"{path}: sample {key!r} has several files of one type: {[e for e, _ in members]}")
            images = [e for e in IMAGE_TYPES if e in group]
            if len(images) != 1 or "txt" not in group:
                raise DataError(f"{path}: sample {key!r} needs one picture and one .txt, has {sorted(group)}")
            caption = clean_text(_decode(group["txt"], f"{path}: {key}.txt"))
            samples.append(Sample(key, group[images[0]], caption, f"{path}: {key}.{images[0]}"))
    if not samples:
        raise DataError(f"data: {list(patterns)} hold no samples")
    return samples


def read_texts(patterns: Sequence[str]) -> list[str]:
    """The .txt files of all shards, in order, as they are but for a byte order mark. Raises DataError as read_pairs."""
    texts = [
        _decode(data, f"{path}: {key}.{extension}")
        for path in find_paths(patterns)
        for key, extension, data in read_files(path)
        if extension == "txt"
    ]
    if not texts:
        raise DataError(f"data: {list(patterns)} hold no .txt files")
    return texts


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: expected UTF-8, got byte 0x{data[error.start]:02x} at {error.start}; convert the file, for "
            "example with iconv -f latin1 -t utf-8"
        ) from error


def load_images(samples: Sequence[Sample], size: int) -> Tensor:
    """All pictures of a small set at once: float32 [N, 3, size, size]."""
    return torch.stack([to_tensor(fit(open_image(sample.image, sample.origin), (size, size))) for sample in samples])


class Shuffled:
    """An endless shuffled order over `n` samples: position i is sample permutation(seed, i // n)[i % n].

    A pure function of the position, so that a resumed run continues with exactly the samples it would have seen.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def indices(self, start: int, count: int) -> list[int]:
        return [self._at(i) for i in range(start, start + count)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            order = torch.randperm(self.n, generator=seeded_generator(self.seed, epoch))
            self._epoch, self._order = epoch, order
        return int(self._order[place])
