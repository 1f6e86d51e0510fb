"""What is too large is refused before it is read, and what is kept stays within its limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from showo.data import open_files, parquet
from showo.data.open_files import Recent
from showo.data.tar import write_tar
from showo.errors import SampleError
from tests.showo.data.layouts import png, source, write_pairs, write_table


def test_a_sample_larger_than_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", png()), ("x.txt", b"one"), ("y.png", bytes(4000)), ("y.txt", b"two")])
    opened = source("webdataset", tmp_path / "a.tar")
    monkeypatch.setattr(open_files, "MAX_PIECE_BYTES", 3000)
    assert opened[0].key == "x"
    monkeypatch.setattr(os, "pread", lambda *arguments: pytest.fail("is read"))
    with pytest.raises(SampleError, match=r"a\.tar: bytes \d+ to \d+: 5123 bytes, more than 3000") as error:
        opened[1]
    assert error.value.reason == "too large"


def test_a_row_group_larger_than_the_limit_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1000)
    rows = {"text": [f"{n} {'word ' * 400}" for n in range(2)], "id": [1, 2]}
    with pytest.raises(SampleError, match=r"a\.parquet: row group 0 has \d{4} bytes, more than 1000") as error:
        source("parquet_text", write_table(tmp_path / "a.parquet", rows))[0]
    assert error.value.reason == "too large"
    others = {"text": ["a", "b"], "other column": rows["text"]}
    assert source("parquet_text", write_table(tmp_path / "b.parquet", others))[0].key == "b.parquet: row 0 of group 0"


def test_the_last_used_are_kept_up_to_a_weight() -> None:
    dropped: list[str] = []
    recent: Recent[str] = Recent(6, weight=len, drop=dropped.append)
    made = [recent.get(key, lambda: key * 2) for key in ("a", "b", "c", "a", "d", "eeee", "b")]  # noqa: B023
    assert made == ["aa", "bb", "cc", "aa", "dd", "eeeeeeee", "bb"]
    assert dropped == ["bb", "cc", "aa", "dd", "eeeeeeee"]


def test_a_forked_process_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent's open files have one position for both."""
    recent: Recent[int] = Recent(10)
    assert [recent.get("key", lambda: 1), recent.get("key", lambda: 2)] == [1, 1]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert [recent.get("key", lambda: 3), recent.get("key", lambda: 4)] == [3, 3]


def test_a_source_works_in_forked_and_parent_process_at_once(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", {"text": [f"{n}" for n in range(60)]}, group=2)
    opened = [
        source("webdataset", write_pairs(tmp_path / "a.tar", [f"{n}" for n in range(60)])),
        source("parquet_text", table),
    ]
    keys = [[each[n].key for n in range(60)] for each in opened]
    child = os.fork()
    if not child:
        same = [[each[n].key for n in range(60)] for each in opened] == keys
        os._exit(0 if same else 1)
    assert [[each[n].key for n in reversed(range(60))][::-1] for each in opened] == keys
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
