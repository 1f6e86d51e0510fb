"""The index of data files: made once, made anew where it does not fit, and never wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from showo.data import index as index_module
from showo.data.array_file import DamagedError, read_arrays, write_arrays
from showo.data.index import Index, Part, open_index
from showo.data.open_files import OpenFiles
from showo.data.tar import write_tar
from showo.data.tar_scan import scan_pairs
from showo.errors import DataError, OutputError
from tests.showo.data.layouts import source, write_pairs


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    keys = (["a", "b", "c"], ["d"], ["e", "f"])
    return [write_pairs(tmp_path / f"{number}.tar", some) for number, some in enumerate(keys)]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been scanned since the test last cleared the list."""
    names: list[str] = []
    scan_one = index_module._scan_one

    def note(job: index_module._Job) -> None:
        names.append(job.path.name)
        scan_one(job)

    monkeypatch.setattr(index_module, "_scan_one", note)
    return names


def content(index: Index) -> tuple[list[int], list[list[int]], bytes]:
    return index.starts.tolist(), index.records.tolist(), index.text.tobytes()


def test_an_index_is_made_once_for_each_file(shards: list[Path], tmp_path: Path, scanned: list[str]) -> None:
    cache = tmp_path / "cache"
    first = content(open_index(shards[:2], scan_pairs, cache))
    assert scanned == ["0.tar", "1.tar"]
    assert first[0] == [0, 3, 4]
    scanned.clear()
    assert content(open_index(shards[:2], scan_pairs, cache)) == first
    assert scanned == []
    assert open_index(shards, scan_pairs, cache).starts.tolist() == [0, 3, 4, 6]
    assert scanned == ["2.tar"]


def test_an_index_that_is_older_than_its_file_is_made_anew(
    shards: list[Path], tmp_path: Path, scanned: list[str]
) -> None:
    cache = tmp_path / "cache"
    before = open_index(shards, scan_pairs, cache)
    time = shards[1].stat().st_mtime_ns
    changes: list[Callable[[], object]] = [
        lambda: os.utime(write_pairs(shards[1], [*"abcdefgh"]), ns=(time, time)),  # another size alone
        lambda: os.utime(shards[1], ns=(1, 1)),  # another time alone
    ]
    for change in changes:
        change()
        scanned.clear()
        after = open_index(shards, scan_pairs, cache)
        assert scanned == ["1.tar"]
        assert after.starts.tolist() == [0, 3, 11, 13]
    assert before.starts.tolist() == [0, 3, 4, 6]  # who has it open keeps it


def test_a_damaged_index_is_made_anew(shards: list[Path], tmp_path: Path) -> None:
    cache, chance = tmp_path / "cache", random.Random(0)
    right = content(open_index(shards, scan_pairs, cache))
    for number in range(16):
        for path in cache.iterdir():
            data = bytearray(path.read_bytes())
            if number % 4 == 0:
                del data[chance.randrange(len(data)) :]
            else:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        assert content(open_index(shards, scan_pairs, cache)) == right, number


def test_a_flipped_bit_in_any_byte_of_a_file_of_arrays_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_arrays(path, {"x": [np.arange(3), np.arange(2)], "none": [np.empty((0, 2))]}, {"n": 1})
    about, arrays = read_arrays(path)
    assert about == {"n": 1}
    assert arrays["x"].tolist() == [0, 1, 2, 0, 1]
    assert arrays["none"].shape == (0, 2)
    data = path.read_bytes()
    for place, byte in enumerate(data):
        path.write_bytes(data[:place] + bytes([byte ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(DamagedError):
            read_arrays(path)


def test_processes_give_the_same_index(shards: list[Path], tmp_path: Path) -> None:
    alone = content(open_index(shards, scan_pairs, tmp_path / "one", processes=1))
    assert content(open_index(shards, scan_pairs, tmp_path / "two", processes=2)) == alone
    (tmp_path / "3.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"3\.tar: damaged or no tar archive"):
        open_index([*shards, tmp_path / "3.tar"], scan_pairs, tmp_path / "two", processes=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: write_pairs(path, ["x", "y", "z"]), "has changed since it was indexed"),
        (lambda path: os.utime(path, ns=(1, 1)), "has changed since it was indexed"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
    ids=["replaced", "touched", "removed"],
)
def test_a_file_that_changes_under_a_running_epoch_stops_it(
    shards: list[Path], change: Callable[[Path], object], message: str
) -> None:
    opened = source("webdataset", *shards)
    assert opened[0].key == "a"
    change(shards[0])
    for sample in (1, 0):
        with pytest.raises(DataError, match=rf"0\.tar: {message}") as error:
            opened[sample]
        assert type(error.value) is DataError  # not the fault of a single sample
    assert opened[3].key == "d"


def scan_while_it_grows(path: Path) -> Part:
    with path.open("ab") as file:
        file.write(b"more")
    return Part.of([(0,)], 1)


def test_a_file_that_changes_while_it_is_indexed_is_refused(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.tar: has changed while it was indexed; start again when it is complete"):
        open_index(shards, scan_while_it_grows, tmp_path / "cache")
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_cache_that_cannot_be_written_is_named(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot make the folder .*/file"):
        open_index(shards, scan_pairs, tmp_path / "file" / "cache")


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(60)]
    for path in paths:
        write_tar(path, [("a.png", b"1"), ("a.txt", b"2")])
    files = OpenFiles(open_index(paths, scan_pairs, tmp_path / "cache"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else 0
    for file in [*range(60), *range(60)]:
        assert files.read(file, 0, 5, "x") == b"a.png"
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 32
