"""Which layout data have is seen from what they hold, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from showo.data.recognise import recognise
from showo.data.sources.config import LAYOUTS
from showo.data.tar import write_tar
from showo.errors import DataError, MissingDataError
from tests.showo.data.layouts import conversation, png, write_json, write_pairs, write_table


def write_all(folder: Path) -> dict[str, Path]:
    """Small data of every layout."""
    (folder / "classes" / "n00000001").mkdir(parents=True)
    (folder / "classes" / "n00000001" / "a.JPEG").write_bytes(png())
    write_tar(folder / "texts.tar", [("a.txt", b"a text")])
    frames = [{"image": "a.png", "caption": "a"}]
    return {
        "webdataset": write_pairs(folder / "pairs.tar", ["a", "b"]),
        "imagenet": folder / "classes",
        "codes": write_table(folder / "codes.parquet", {"key": ["a"], "codes": [[1]], "caption": ["a"]}),
        "tar_text": folder / "texts.tar",
        "parquet_text": write_table(folder / "texts.parquet", {"key": ["a"], "content": ["a text"]}),
        "llava": write_json(folder / "llava.json", [conversation("a", "who?", "me")]),
        "sequences": write_json(folder / "steps.jsonl", [{"id": "a", "frames": frames}]),
    }


def test_every_layout(tmp_path: Path) -> None:
    written = write_all(tmp_path)
    assert written.keys() == LAYOUTS.keys() - {"llava_captions"}  # those files are recognised as conversations
    assert {layout: recognise(str(path)) for layout, path in written.items()} == {each: each for each in written}
    assert recognise(f"{tmp_path}/pair*.tar") == "webdataset"


def test_what_is_damaged_behind_its_beginning_is_recognised(tmp_path: Path) -> None:
    cut = write_pairs(tmp_path / "cut.tar", ["a", "b"])
    cut.write_bytes(cut.read_bytes()[:3000])
    assert recognise(str(cut)) == "webdataset"
    json = write_json(tmp_path / "llava.json", [conversation("a", "who?", "me")])
    json.write_text(json.read_text().replace("[", "[nonsense, ", 1))
    assert recognise(str(json)) == "llava"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", b"no tar at all" * 100, "a.tar"),
        ("a.parquet", b"PAR1", "a.parquet: not a parquet file"),
        ("a.json", b"{}", "a.json: of no layout"),
        ("a.json", b'[{"caption": "a"}]', "a.json: of no layout"),
        ("a.json", b"", "a.json: is empty; expected JSON"),
        ("a.png", png(), "a.png: of no layout that is known; --layout NAME says which it is, of webdataset, "),
        ("folder/a.tar", b"", r"folder: holds no folders with pictures; give its files, such as .*folder/\*.tar"),
    ],
)
def test_what_is_of_no_layout(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        recognise(str(path if path.parent == tmp_path else path.parent))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no file matches '.*none\.tar'"):
        recognise(f"{tmp_path}/none.tar")
