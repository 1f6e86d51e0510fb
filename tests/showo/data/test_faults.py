"""Broken samples: 200 of every kind are counted by what is wrong, and change nothing for the others."""

from __future__ import annotations

import io
import logging
import pickle
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from showo.data.faults import MAX_ATTEMPTS, Drawn, FaultLog, Pool
from showo.data.sample import CaptionedPicture, Conversation, PictureSequence, Sample, Source
from showo.data.sources.config import SourceConfig
from showo.errors import DataError, SampleError
from tests.showo.data.layouts import conversation, png, source, write_json, write_table

PNG = png()
BOMB = PNG[:16] + struct.pack(">II", 100_000, 100_000) + PNG[24:29]
BOMB += struct.pack(">I", zlib.crc32(BOMB[12:29])) + PNG[33:]

Files = list[tuple[str, bytes | None]]  # None: a symbolic link


def good(key: str) -> Files:
    return [(f"{key}.png", PNG), (f"{key}.txt", f"caption of {key}".encode())]


PAIR_FAULTS: dict[str, tuple[str, Callable[[str], Files]]] = {
    "cut picture": ("unreadable picture", lambda key: [(f"{key}.png", PNG[:-20]), good(key)[1]]),
    "no picture at all": ("unreadable picture", lambda key: [(f"{key}.png", b"<html>404</html>"), good(key)[1]]),
    "empty picture": ("unreadable picture", lambda key: [(f"{key}.png", b""), good(key)[1]]),
    "bomb": ("too large", lambda key: [(f"{key}.png", BOMB), good(key)[1]]),
    "absurd size": ("too large", lambda key: [good(key)[0], (f"{key}.txt", b"word " * 30_000)]),
    "no caption": ("no caption", lambda key: [good(key)[0], (f"{key}.cls", b"3")]),
    "empty caption": ("no caption", lambda key: [good(key)[0], (f"{key}.txt", b" \n")]),
    "caption in Latin-1": ("text is not UTF-8", lambda key: [good(key)[0], (f"{key}.txt", b"caf\xe9")]),
    "caption is a number": ("wrong caption", lambda key: [good(key)[0], (f"{key}.json", b'{"caption": 3}')]),
    "broken json": ("damaged entry", lambda key: [good(key)[0], (f"{key}.json", b'{"caption": "a')]),
    "caption alone": ("no picture", lambda key: [(f"{key}.cls", b"3"), good(key)[1]]),
    "two pictures": ("several pictures", lambda key: [*good(key), (f"{key}.jpg", PNG)]),
    "two captions": ("several files of one type", lambda key: [*good(key), (f"{key}.txt", b"other")]),
    "link": ("link", lambda key: [(f"{key}.png", None), good(key)[1]]),
}  # fmt: skip
SHARDS, IN_SHARD = 4, 60


def write_shards(folder: Path, planted: dict[int, str]) -> list[Path]:
    """Tars of pairs, in which the numbers in `planted` have a fault of that name."""
    folder.mkdir()
    paths = []
    for shard in range(SHARDS):
        paths.append(folder / f"{shard}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(shard * IN_SHARD, (shard + 1) * IN_SHARD):
                files = PAIR_FAULTS[planted[number]][1] if number in planted else good
                for name, data in files(f"{number:03}"):
                    info = tarfile.TarInfo(name)
                    info.size, info.type = len(data or b""), tarfile.REGTYPE if data is not None else tarfile.SYMTYPE
                    info.linkname = "" if data is not None else "/etc/passwd"
                    tar.addfile(info, io.BytesIO(data or b""))
    return paths


def damage(path: Path, key: str) -> None:
    """Makes the header of a member unreadable."""
    data = path.read_bytes()
    at = data.index(f"{key}.png\0".encode())
    path.write_bytes(data[: at + 150] + b"?" + data[at + 151 :])


def number(position: int, sample: Any) -> int:
    return int(sample)


def used(position: int, sample: Sample) -> str:
    """The key of a sample, all of whose pictures can be decoded."""
    pictures = {
        CaptionedPicture: lambda: [sample.picture],  # type: ignore[union-attr]
        Conversation: lambda: sample.pictures,  # type: ignore[union-attr]
        PictureSequence: lambda: [frame.picture for frame in sample.frames],  # type: ignore[union-attr]
    }
    for picture in pictures.get(type(sample), list)():
        if picture.codes is None:
            picture.open()
    return sample.key


def epoch(opened: Source, seed: int = 1) -> list[Drawn[str]]:
    return Pool([opened], [SourceConfig()], seed).draw(range(len(opened)), used)


def compare(whole: Source, broken: Source, expected: Counter[str]) -> None:
    """In an epoch, the faults by reason are those expected, and all other positions have what they had without."""
    before, after = epoch(whole), epoch(broken)
    assert not any(drawn.faults for drawn in before)
    assert Counter(drawn.faults[0].reason for drawn in after if drawn.faults) == expected
    assert all(a.value == b.value for a, b in zip(before, after) if not b.faults)
    assert all(a.value != b.value for a, b in zip(before, after) if b.faults)
    assert {drawn.value for drawn in after} <= {drawn.value for drawn in before}
    log = FaultLog([broken.name], share=1)
    log.add(after)
    assert sum(log.counts.values()) == sum(len(drawn.faults) for drawn in after)
    assert log.counts.keys() == {(0, reason) for reason in expected}


def test_two_hundred_faults_of_every_kind(tmp_path: Path) -> None:
    # 124 in tars: 8 of each kind, and 12 samples behind a damaged header
    kinds = [*PAIR_FAULTS] * 8
    planted = dict(zip(range(1, 2 * len(kinds), 2), kinds))
    assert max(planted) < SHARDS * IN_SHARD - 12
    paths = write_shards(tmp_path / "broken", planted)
    damage(paths[-1], f"{SHARDS * IN_SHARD - 12:03}")
    expected = Counter({"damaged tar": 12})
    expected.update(PAIR_FAULTS[kind][0] for kind in kinds)
    compare(source("webdataset", *write_shards(tmp_path / "whole", {})), source("webdataset", *paths), expected)

    # 36 in conversations
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(PNG)
    (pictures / "cut.png").write_bytes(PNG[:-20])
    (pictures / "link.png").symlink_to(tmp_path / "whole" / "0.tar")
    faults: list[tuple[Any, str]] = [
        (conversation("", "?", "!", image="gone.png"), "missing file"),
        (conversation("", "?", "!", image="cut.png"), "unreadable picture"),
        (conversation("", "?", "!", image="../whole/0.tar"), "path outside its folder"),
        (conversation("", "?", "!", image="link.png"), "path outside its folder"),
        (conversation("", "?", "!", image=7), "wrong path"),
        (conversation("", "?"), "wrong conversation"),
    ]
    entries = [conversation(str(number), "?", "!", image="a.png") for number in range(80)]
    whole = source("llava", write_json(tmp_path / "whole.json", entries), images=str(pictures))
    for number in range(36):
        entries[2 * number] = faults[number % 6][0]
    broken = source("llava", write_json(tmp_path / "broken.json", entries), images=str(pictures))
    compare(whole, broken, Counter(faults[number % 6][1] for number in range(36)))

    # 40 in tables
    rows: dict[str, list[Any]] = {
        "key": [str(number) for number in range(100)],
        "codes": [[number] for number in range(100)],
        "caption": ["caption"] * 100,
        "text": ["text"] * 100,
    }
    path = write_table(tmp_path / "whole" / "a.parquet", rows, group=10)
    tables = [source(layout, path) for layout in ("codes", "parquet_text")]
    for number in range(0, 20, 2):
        rows["codes"][number], rows["caption"][50 + number] = [-1], None
        rows["text"][number], rows["text"][50 + number] = None, "\n"
    path = write_table(tmp_path / "broken" / "a.parquet", rows, group=10)
    compare(tables[0], source("codes", path), Counter({"wrong codes": 10, "no caption": 10}))
    compare(tables[1], source("parquet_text", path), Counter({"no text": 20}))


class Numbers:
    """A source of 1,000 numbers, of which those in `broken` cannot be used."""

    name, kind = "numbers", CaptionedPicture

    def __init__(self, broken: range | frozenset[int]) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            raise SampleError(f"numbers: {index} is broken", "odd" if index % 2 else "even")
        return index


def test_every_source_has_an_order_of_its_own() -> None:
    drawn = Pool([Numbers(range(0)), Numbers(range(0))], [SourceConfig()] * 2, 5).draw(range(100), number)
    first, second = ([each.index for each in drawn if each.source == source] for source in (0, 1))
    assert all(a != b for a, b in zip(first, second))


def test_a_source_is_read_by_blocks_where_so_wished() -> None:
    """Of ten samples that follow one another; those of two blocks are mixed."""
    drawn = Pool([Numbers(range(0))], [SourceConfig(block=10, window=2)], 5).draw(range(1000), number)
    order = [each.index for each in drawn]
    assert sorted(order) == list(range(1000))
    runs = []
    for start in range(0, 1000, 20):
        numbers = sorted(order[start : start + 20])
        runs.append(1 + sum(b - a > 1 for a, b in pairwise(numbers)))
    assert max(runs) <= 3  # one may run over the end of the source
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 300


def test_faults_are_logged_and_too_many_stop_the_run_with_a_table(caplog: pytest.LogCaptureFixture) -> None:
    configs = [SourceConfig(weight=1), SourceConfig(weight=3)]
    pool = Pool([Numbers(range(0)), Numbers(range(100))], configs, 5)
    log = FaultLog(["whole", "broken"], share=0.2, tolerated=3)
    with caplog.at_level(logging.WARNING, "showo"):
        log.add(pool.draw(range(400), number))
    (source_, reason), count = log.counts.most_common(1)[0]
    assert source_ == 1
    assert log.table().splitlines()[0] == f"broken  {reason:<4}  {count}"
    assert len(caplog.messages) == sum(log.counts.values())
    assert "broken: skipped a sample (" in caplog.messages[0]
    strict = FaultLog(["whole", "broken"], share=0.01, tolerated=3)
    with pytest.raises(
        DataError, match=r"broken: \d+ of \d+ samples cannot be used, more than 1\.0%\nbroken  \w+ +\d+"
    ):
        strict.add(pool.draw(range(400), number))
    FaultLog(["whole", "broken"], share=0, tolerated=400).add(pool.draw(range(400), number))


def test_replacements_depend_on_nothing_but_seed_and_position() -> None:
    def pool(seed: int) -> Pool:
        return Pool([Numbers(range(500))], [SourceConfig()], seed)

    whole = pool(1).draw(range(300), number)
    assert pickle.loads(pickle.dumps(pool(1))).draw(range(299, -1, -1), number)[::-1] == whole
    assert [drawn.value for drawn in pool(2).draw(range(300), number)] != [drawn.value for drawn in whole]
    replaced = [drawn.value for drawn in whole if drawn.faults]
    assert len(set(replaced)) > 0.7 * len(replaced)  # not one sample for all


def test_a_source_of_nothing_but_faults_is_given_up() -> None:
    with pytest.raises(
        DataError, match=rf"numbers: {MAX_ATTEMPTS} samples in a row cannot be used; the last: numbers: \d"
    ):
        Pool([Numbers(range(1000))], [SourceConfig()], 0).draw([0], number)


def test_faults_that_are_no_samples_stop_at_once() -> None:
    def fail(position: int, sample: Sample) -> None:
        raise DataError("a.tar: has changed")

    with pytest.raises(DataError, match=r"a\.tar: has changed"):
        Pool([Numbers(range(0))], [SourceConfig()], 0).draw([0], fail)
