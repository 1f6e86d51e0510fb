"""`showo tokenize`: the pictures of a source go through the image tokenizer once, and into shards of codes.

Shard n holds samples n * size, n * size + 1, ... of the source, in that order, but for those that cannot be used. So a
shard depends on nothing that was done before it, and a run that was stopped goes on at the first one that is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import Tensor

from showo.data.code_shards import Encoding, Origin, ShardFacts, ShardRows, read_facts, write_shard
from showo.data.faults import Fault, FaultLog
from showo.data.loader import Loader
from showo.data.patterns import find_paths
from showo.data.rows import read_pixels, stacked
from showo.data.sample import CaptionedPicture, Source
from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError, DataError, OutputError, SampleError
from showo.lock import run_lock
from showo.pieces import pieces
from showo.progress import counting_bar

LAYOUTS = ("webdataset", "imagenet")  # of pictures with captions
_PREFETCH = 2  # chunks, of each worker


@dataclass(frozen=True)
class Chunk:
    """What a worker reads of a few samples. pixels: uint8 [pictures, 3, H, W]."""

    pixels: Tensor
    keys: list[str]
    captions: list[tuple[str, ...]]
    faults: list[Fault]


@dataclass(frozen=True)
class _ChunkReader:
    """Chunks by number: of each, the samples that `chunks` says."""

    source: Source
    resolution: int
    chunks: Sequence[range]

    def __call__(self, number: int) -> Chunk:
        pixels: list[np.ndarray] = []
        keys: list[str] = []
        captions: list[tuple[str, ...]] = []
        faults: list[Fault] = []
        for index in self.chunks[number]:
            try:
                sample = self.source[index]
                assert isinstance(sample, CaptionedPicture)
                pixels.append(read_pixels(sample.picture, self.resolution))
            except SampleError as error:
                faults.append(Fault(0, index, error.reason, str(error)))
                continue
            keys.append(sample.key)
            captions.append(sample.captions)
        return Chunk(stacked(pixels, self.resolution), keys, captions, faults)


@dataclass(frozen=True)
class Tokenized:
    """What a folder of shards holds now. made: shards that this run has made."""

    pictures: int
    shards: int
    made: int
    faults: FaultLog


@dataclass(frozen=True)
class Tokenizing:
    """Makes the shards of a source in `folder`.

    origin: which source that is. encode: pixels uint8 [pictures, 3, H, W] to codes int64 [pictures, codes], in the way
    that `encoding` says. batch: samples that are read and encoded together. workers: processes that read ahead.
    broken_share: of the samples; where more cannot be used, the run ends.
    """

    source: Source
    origin: Origin
    folder: Path
    encoding: Encoding
    encode: Callable[[Tensor], Tensor]
    codes: int
    codebook_size: int
    batch: int = 64
    workers: int = 2
    broken_share: float = 0.01

    def run(self, console: Console) -> Tokenized:
        """Makes all shards that are not there yet.

        Raises:
            DataError: the source cannot be used, or too many of its samples are broken, or all.
            OutputError: the folder holds something else, or cannot be written. Shards that are there stay.
            RunInUseError: another process writes into the folder.
        """
        with run_lock(self.folder):
            shards = dict(zip(self._paths(), pieces(range(len(self.source)), self.origin.shard_size)))
            kept = self._kept(list(shards))
            missing = [samples for path, samples in shards.items() if path not in kept]
            wanted = [piece for samples in missing for piece in pieces(samples, self.batch)]
            reader = _ChunkReader(self.source, self.encoding.resolution, wanted)
            chunks = Loader(reader, workers=self.workers, prefetch=_PREFETCH).between(0, len(wanted))
            log = FaultLog([self.source.name], self.broken_share)
            with closing(chunks), counting_bar(console) as progress:
                bar = progress.add_task("tokenize", total=len(self.source))
                for path, samples in shards.items():
                    if path in kept:
                        log.count(0, len(samples), kept[path])
                    else:
                        self._make(path, samples, chunks, log)
                    progress.advance(bar, len(samples))
            if log.counts.total() == len(self.source):
                for path in shards:
                    path.unlink()
                raise DataError(f"{self.source.name}: not one of {len(self.source)} samples can be used\n{log.table()}")
        return Tokenized(len(self.source) - log.counts.total(), len(shards), len(missing), log)

    def _paths(self) -> list[Path]:
        count = -(-len(self.source) // self.origin.shard_size)
        return [self.folder / f"{number:05d}-of-{count:05d}.parquet" for number in range(count)]

    def _kept(self, paths: Sequence[Path]) -> dict[Path, tuple[Fault, ...]]:
        """Shards that are there already, and the faults of their samples. What a killed process left goes.

        Raises OutputError for shards of anything else.
        """
        for path in self.folder.glob(".*.tmp.parquet"):
            path.unlink()
        kept = {}
        for path in sorted(self.folder.glob("[!.]*.parquet")):
            there = read_facts(path)
            if there is None:
                raise OutputError(f"{path} is no shard of showo tokenize; choose another folder")
            here = {**asdict(self.encoding), **asdict(self.origin), "image_tokenizer": there.encoding.image_tokenizer}
            for name, value in {**asdict(there.encoding), **asdict(there.origin)}.items():
                if value != here[name]:
                    made = f"with another {name}, {value}, not {here[name]}"
                    if name == "files":  # checksums
                        made = "of other files, or of these before they changed"
                    raise OutputError(f"{path} was made {made}; choose another folder, or delete this one")
            kept[path] = there.faults
        if other := kept.keys() - set(paths):
            raise OutputError(f"{min(other)}: its name is none of {paths[0].name} to {paths[-1].name}; rename it back")
        return kept

    def _make(self, path: Path, samples: range, chunks: Iterator[Chunk], log: FaultLog) -> None:
        read = []
        codes = [np.empty((0, self.codes), np.int64)]
        for piece in pieces(samples, self.batch):
            chunk = next(chunks)
            log.count(0, len(piece), chunk.faults)
            read.append(chunk)
            if len(chunk.pixels):
                codes.append(self.encode(chunk.pixels).cpu().numpy())
        faults = tuple(fault for chunk in read for fault in chunk.faults)
        keys = [key for chunk in read for key in chunk.keys]
        captions = [some for chunk in read for some in chunk.captions]
        rows = ShardRows(keys, np.concatenate(codes), captions)
        try:
            write_shard(path, rows, ShardFacts(self.encoding, self.origin, faults), self.codebook_size)
        except OutputError as error:
            raise OutputError(
                f"{error}; all shards before this one are done, and the same command goes on here"
            ) from error


def open_captioned(config: SourceConfig, shard_size: int, cache: Path | None = None) -> tuple[Source, Origin]:
    """The source that is to be encoded, and what shards of `shard_size` samples say of it.

    Raises ConfigError for a layout whose samples are no pictures with captions, or are codes already; else as
    `open_source`.
    """
    if config.layout not in LAYOUTS:
        raise ConfigError(
            f"layout must be one of {', '.join(LAYOUTS)}, got {config.layout!r}; pictures of conversations and "
            "sequences are encoded while a model trains"
        )
    source = open_source(config, cache)
    files = find_paths([*config.files, *config.captions, *filter(None, [config.class_names])])
    status = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return source, Origin(source.name, hashlib.sha256(repr(status).encode()).hexdigest(), len(source), shard_size)
