"""Readers of WebDataset tar shards, and the order in which training sees their samples."""

from __future__ import annotations

import glob
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DataError
from ..files import package_path
from .tar import walk_tar

BUNDLED = "bundled:"
MAX_PIXELS = 64 * 1024 * 1024  # refuse decompression bombs before decoding
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp")
_MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Sample:
    key: str
    image: bytes
    caption: str


def shard_paths(patterns: Sequence[str]) -> list[Path]:
    """Expands globs; a pattern that begins with "bundled:" is looked up among the package's own data.

    Raises FileNotFoundError for a pattern that matches nothing. Only local files: nothing is downloaded or executed.
    """
    paths: list[Path] = []
    for pattern in patterns:
        base = pattern
        if pattern.startswith(BUNDLED):
            base = str(package_path("assets") / pattern.removeprefix(BUNDLED))
        found = sorted(Path(p) for p in glob.glob(base))
        if not found:
            raise FileNotFoundError(f"data: no file matches {pattern!r}")
        paths += found
    return paths


def read_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields (key, extension, bytes) of the files of one tar, in order; nothing is unpacked to disk.

    Left out: folders, names without an extension, and hidden files (macOS adds "._x.png" beside "x.png"). Raises
    DataError where the tar is damaged (see `tar`), and for links and devices, whose bytes are not in the tar.
    """
    if not path.is_file():
        raise DataError(f"{path}: no file; expected a tar")
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


def read_pairs(patterns: Sequence[str]) -> list[Sample]:
    """Image-caption pairs of all shards.

    `key.png|jpg|webp` + `key.txt`, adjacent as WebDataset wants. Incomplete pairs are an error.
    """
    samples: list[Sample] = []
    for path in shard_paths(patterns):
        for key, files in groupby(read_files(path), key=itemgetter(0)):
            members = [(extension, data) for _, extension, data in files]
            group = dict(members)
            if len(group) < len(members):
                raise DataError(f"{path}: sample {key!r} has several files of one type: {[e for e, _ in members]}")
            images = [group[e] for e in IMAGE_TYPES if e in group]
            if len(images) != 1 or "txt" not in group:
                raise DataError(f"{path}: sample {key!r} needs one picture and one .txt, has {sorted(group)}")
            samples.append(Sample(key, images[0], group["txt"].decode("utf-8")))
    if not samples:
        raise DataError(f"data: {list(patterns)} hold no samples")
    return samples


def read_texts(patterns: Sequence[str]) -> list[str]:
    """The .txt files of all shards, in order."""
    texts = [
        d.decode("utf-8")
        for path in shard_paths(patterns)
        for _, extension, d in read_files(path)
        if extension == "txt"
    ]
    if not texts:
        raise DataError(f"data: {list(patterns)} hold no .txt files")
    return texts


def open_image(source: bytes | Path) -> Image.Image:
    """Opens a picture as RGB on white. Raises ValueError when it is unreadable or has more than MAX_PIXELS pixels."""
    name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{name}: {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{name}: not a readable picture ({error})") from error


def to_tensor(image: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    """RGB picture -> float32 [3, H, W] in [-1, 1]; with `size` (width, height), cropped to that shape and resized."""
    if size is not None:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)  # crops first: a thin picture never grows
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_image(tensor: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] -> RGB picture, rounded to nearest."""
    pixels = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def load_images(samples: Sequence[Sample], size: int) -> Tensor:
    """All pictures of a small set at once: float32 [N, 3, size, size]."""
    return torch.stack([to_tensor(open_image(sample.image), (size, size)) for sample in samples])


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
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=generator)
        return int(self._order[place])
