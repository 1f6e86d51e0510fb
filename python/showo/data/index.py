"""Where the samples of data files lie: small arrays, made once by reading each file through, kept in a cache folder.

A scan is a function of one file's path that gives a Part: a row of int64 for every sample of the file (for a tar, where
its bytes begin and end), and perhaps text that the rows point into. The parts of all files, one after another, are the
index of a source. Both are kept: the parts, so that more files can join without reading the old ones again, and the
whole, so that one file is mapped into memory however many shards there are. No process holds more than that mapping,
which all processes of a machine share.

Every part carries size and modification time of its file. A part that does not fit them, or is damaged, is made anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import track

from showo.data.array_file import DamagedError, read_arrays, write_arrays
from showo.errors import DataError
from showo.files import make_folder
from showo.workers import worker_pool

VERSION = 1  # of what scans write: to be raised when one of them changes
_WORTH_PROCESSES = 1 << 30  # bytes of files; fewer are read through before other processes have started


@dataclass(frozen=True)
class Part:
    """What a scan finds in one file. records: int64 [samples, columns]; text: bytes that records may point into."""

    records: np.ndarray
    text: bytes = b""

    @classmethod
    def of(cls, records: Iterable[Sequence[int]], columns: int) -> Part:
        """A part of records that may come one by one, so that no list of millions of tuples is needed."""
        numbers = np.fromiter(chain.from_iterable(records), np.int64)
        return cls(numbers.reshape(-1, columns))


Scan: TypeAlias = Callable[[Path], Part]  # a function of a module, so that other processes can call it


def default_cache() -> Path:
    """Where indices are kept unless another folder is named: showo/ in the user's folder of caches (XDG)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "showo"


@dataclass(frozen=True)
class Index:
    """The parts of all files as one. Sample i is row i, or the rows are sorted, if it was opened so.

    files: paths of the files, in order.
    starts: int64 [files + 1], the first sample of every file, and the number of all.
    records: int64 [samples, columns]; sorted records have the number of their file as one more column.
    """

    path: Path
    files: tuple[Path, ...]
    starts: np.ndarray = field(repr=False)
    identities: np.ndarray = field(repr=False)
    records: np.ndarray = field(repr=False)
    text: np.ndarray = field(repr=False)
    text_starts: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def locate(self, sample: int) -> tuple[int, list[int]]:
        """Number of the file that holds a sample, and the sample's record. IndexError beyond the last sample."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        file = int(np.searchsorted(self.starts, sample, "right")) - 1
        return file, self.records[sample].tolist()

    def text_of(self, file: int, start: int, length: int) -> str:
        begin = int(self.text_starts[file]) + start
        return self.text[begin : begin + length].tobytes().decode()

    def check_unchanged(self, file: int, status: os.stat_result) -> None:
        """Raises DataError where a file is no longer the one that was indexed."""
        if tuple(self.identities[file]) != _identity(status):
            raise DataError(
                f"{self.files[file]}: has changed since it was indexed; start again, which indexes it anew, or put "
                "the old file back"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file itself."""
        return _load, (self.path, self.files)


def open_index(
    files: Sequence[Path], scan: Scan, cache: Path, *, sort: bool = False, processes: int | None = None
) -> Index:
    """The index of files in that order: from the cache where it fits them, else made, with a progress bar.

    sort: sort all records by their first column.
    processes: how many read files at once; None: as many as there are cores, where there is enough to read.

    Raises:
        DataError: a file cannot be read or is refused by the scan, or holds nothing at all together.
        OutputError: the cache cannot be written.
    """
    kind = f"{scan.__module__}.{scan.__qualname__}"
    identities = [_identity(_status(path)) for path in files]
    real = [os.path.realpath(path) for path in files]
    whole = cache / f"{_digest(kind, sort, *real)}.index"
    about = {"kind": kind, "version": VERSION, "identities": _digest(*identities)}
    if not _fits(whole, about):
        make_folder(cache)
        jobs = [
            _Job(scan, path, cache / f"{_digest(kind, real_path)}.part", {**about, "identities": list(identity)})
            for path, real_path, identity in zip(files, real, identities)
        ]
        _scan_all([job for job in jobs if not _fits(job.part, job.about)], processes)
        _join([job.part for job in jobs], identities, whole, about, sort)
    index = _load(whole, tuple(files))
    if not len(index):
        raise DataError(f"data: no samples in {', '.join(map(str, files[:3]))}{' ...' if len(files) > 3 else ''}")
    return index


@dataclass(frozen=True)
class _Job:
    """A file to scan, where its part goes, and what the part is about."""

    scan: Scan
    path: Path
    part: Path
    about: dict[str, Any]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _fits(path: Path, about: dict[str, Any]) -> bool:
    try:
        return read_arrays(path)[0] == about
    except (OSError, DamagedError):
        return False


def _scan_all(jobs: Sequence[_Job], processes: int | None) -> None:
    if processes is None:
        size = sum(job.about["identities"][0] for job in jobs)
        processes = min(os.cpu_count() or 1, len(jobs)) if size >= _WORTH_PROCESSES else 1
    if processes <= 1:
        _show_progress(map(_scan_one, jobs), len(jobs))
        return
    with worker_pool(processes) as pool:
        _show_progress(pool.map(_scan_one, jobs), len(jobs))


def _show_progress(done: Iterable[None], count: int) -> None:
    hidden = not count or not sys.stderr.isatty()
    for _ in track(done, "indexing", count, console=Console(stderr=True), transient=True, disable=hidden):
        pass


def _scan_one(job: _Job) -> None:
    try:
        found = job.scan(job.path)
    except OSError as error:
        raise DataError(f"{job.path}: cannot be read: {error.strerror or error}") from error
    if list(_identity(_status(job.path))) != job.about["identities"]:
        raise DataError(f"{job.path}: has changed while it was indexed; start again when it is complete")
    write_arrays(job.part, {"records": [found.records], "text": [np.frombuffer(found.text, np.uint8)]}, job.about)


def _join(
    parts: Sequence[Path], identities: list[tuple[int, int]], whole: Path, about: dict[str, Any], sort: bool
) -> None:
    """Writes the index of all files; of their parts, one is mapped at a time."""
    sizes = [[len(array) for array in (part["records"], part["text"])] for part in _each(parts)]
    starts, text_starts = np.cumsum([[0, 0], *sizes], axis=0).T
    records: Iterable[np.ndarray] = (part["records"] for part in _each(parts))
    if sort:
        everything = np.concatenate([np.c_[rows, np.full(len(rows), file)] for file, rows in enumerate(records)])
        records = [everything[np.argsort(everything[:, 0], kind="stable")]]
    arrays = {
        "records": records,
        "text": (part["text"] for part in _each(parts)),
        "starts": [starts],
        "text_starts": [text_starts],
        "identities": [np.array(identities, np.int64)],
    }
    write_arrays(whole, arrays, about)


def _each(parts: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    return (read_arrays(part, check=False)[1] for part in parts)


def _load(path: Path, files: tuple[Path, ...]) -> Index:
    """The index that was written before, and checked then."""
    return Index(path=path, files=files, **read_arrays(path, check=False)[1])
