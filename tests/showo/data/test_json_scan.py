"""Entries of JSON files: found where `json` finds them, also in a file that is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showo.data.json_scan import CUT, entries, parse_entry
from showo.errors import DataError, SampleError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ['"', "\\", "]", '\\"', "{,", "\u20ac"]
)
scalars = st.none() | st.booleans() | st.integers(-9, 99) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path) -> list[Any]:
    data = path.read_bytes()
    return [parse_entry(data[start : start + length], form, "x") for start, length, form in entries(path)]


@relaxed
@given(
    listed=st.lists(values, max_size=5),
    members=st.dictionaries(texts, values, max_size=5),
    indent=st.sampled_from([None, 1]),
    ascii_=st.booleans(),
)
def test_entries_are_those_of_json(
    tmp_path: Path, listed: list[Any], members: dict[str, Any], indent: int | None, ascii_: bool
) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" * ascii_ + json.dumps(listed, indent=indent, ensure_ascii=ascii_) + "\n", encoding="utf-8")
    assert read(path) == listed
    path.write_text(json.dumps(members, indent=indent, ensure_ascii=ascii_), encoding="utf-8")
    assert read(path) == [*members.items()]
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        "\n" + "".join(json.dumps(value, ensure_ascii=ascii_) + " \r\n\n" for value in listed), encoding="utf-8"
    )
    assert read(lines) == listed


@relaxed
@given(
    listed=st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=5),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_cut_file_has_the_entries_before_the_cut(tmp_path: Path, listed: list[Any], share: float) -> None:
    path = tmp_path / "a.json"
    whole = json.dumps(listed).encode()
    cut = 1 + int(share * (len(whole) - 1))
    path.write_bytes(whole[:cut])
    *before, (_, _, last) = entries(path)
    assert last == CUT
    assert all(form != CUT for _, _, form in before)
    data = path.read_bytes()
    found = [parse_entry(data[start : start + length], form, "x") for start, length, form in before]
    commas = [len(json.dumps(listed[:count])) - 1 for count in range(1, len(listed))]
    assert found == listed[: sum(comma < cut for comma in commas)]


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, message in (
        (b"", "is empty"),
        (b"\n 3", "no JSON list or object begins; one entry a line belongs into a file named .jsonl"),
        (b'[{"a": 1}]\n[3]', r"the JSON ends at byte 10, but more follows: b'\[3\]'"),
        (b'{"a": 1}\n{"a": 2}', "the JSON ends at byte 8, but more follows"),
    ):
        path.write_bytes(text)
        with pytest.raises(DataError, match=rf"a\.json: {message}"):
            list(entries(path))


def test_what_is_wrong_within_an_entry_shows_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"a" 2}, , "\\ud800", "\xff", ' + b"[" * 100_000 + b"]" * 100_000 + b', {"a": 3}]')
    data = path.read_bytes()
    found = []
    for start, length, form in entries(path):
        try:
            found.append(parse_entry(data[start : start + length], form, "x"))
        except SampleError as error:
            found.append(str(error)[: len("x: not to be read as JSON")])
    assert found == [{"a": 1}, *["x: not to be read as JSON"] * 5, {"a": 3}]
