"""Captions: cleaned by option, and found by key in files beside their pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from showo.data.caption_files import CaptionFiles
from showo.data.captions import clean_caption, usable_captions
from showo.errors import ConfigError, DataError, SampleError
from tests.showo.data.layouts import conversation, source, write_json, write_pairs, write_table


@pytest.mark.parametrize(
    ("written", "clean", "expected"),
    [
        ("a  photo\u00a0of <person>\n", [], "a photo of <person>"),
        ("<person> with a dog", ["persons"], "a person with a dog"),
        ("by<person>, <person> and <person>.", ["persons"], "by people ."),
        ("<person><person>", ["persons"], "people"),
        ("<person> meets <person>", ["persons"], "a person meets a person"),
        ("The image shows a cat.", [], "The image shows a cat."),
        ("The image shows a cat.", ["prefixes"], "A cat."),
        (
            "In the image, there is a cat. In the center of the image, it sits.",
            ["prefixes"],
            "There is a cat. It sits.",
        ),
        ("In this image, we see \u00e9clairs.", ["prefixes"], "\u00c9clairs."),
        ("This is a cat. This image captures rain", ["prefixes"], "A cat. Rain"),
        ("Notice how This is written", ["prefixes"], "Notice how This is written"),
        ("The image is ", ["prefixes"], "The image is"),
    ],
)
def test_cleaning(written: str, clean: list[str], expected: str) -> None:
    assert clean_caption(written, clean) == expected


def test_the_first_sentence_is_a_caption_of_its_own() -> None:
    texts = ["The image shows 2.5 cats. They sleep.", "A dog", "A dog"]
    assert usable_captions(texts, ["first_sentence"], "x") == (
        "The image shows 2.5 cats. They sleep.",
        "A dog",
        "The image shows 2.5 cats.",
    )
    assert usable_captions(texts[:1], ["first_sentence", "prefixes"], "x") == ("2.5 cats. They sleep.", "2.5 cats.")


def test_a_cleaning_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.tar", ["x"])
    with pytest.raises(ConfigError, match=r"clean must be of persons, prefixes, first_sentence, got 'person'"):
        source("webdataset", path, clean=["person"])


# ---- in files beside the pictures --------------------------------------------------------------------------------


def share_gpt4v(key: str, image: str, caption: str) -> dict[str, Any]:
    return conversation(key, "<image>\nWhat do you see?", caption, image=image)


WRITTEN: dict[str, Any] = {
    "list.json": [{"key": "d/x", "caption": "of x"}, {"id": 12, "captions": ["of y", "of  y, too"]}, {"key": "none"}],
    "object.json": {"d/x": "of x", "12": ["of y", "of  y, too"], "none": ""},
    "lines.jsonl": [{"image": "sets/d/x.jpg", "caption": "of x"}, {"id": "12", "captions": ["of y", "of  y, too"]}],
}


@pytest.mark.parametrize("name", [*WRITTEN, "table.parquet"])
def test_captions_beside_replace_those_within(name: str, tmp_path: Path) -> None:
    tar = write_pairs(tmp_path / "a.tar", ["d/x", "12", "none"])
    if name in WRITTEN:
        path = write_json(tmp_path / name, WRITTEN[name])
    else:
        rows = {"key": ["none", "d/x", "12"], "captions": [None, ["of x"], ["of y", "of  y, too"]]}
        path = write_table(tmp_path / name, rows, group=2)
    opened = source("webdataset", tar, captions=[str(path)])
    assert [opened[0].captions, opened[1].captions] == [("of x",), ("of y", "of y, too")]  # type: ignore[union-attr]
    with pytest.raises(SampleError, match=r"a\.tar: none: ") as error:
        opened[2]
    assert error.value.reason == "no caption"


def test_share_gpt4v(tmp_path: Path) -> None:
    entries = [
        share_gpt4v("sa_1", "sam/images/sa_1.jpg", "One."),
        share_gpt4v("000000000009", "coco/train2017/000000000009.jpg", "Nine."),
    ]
    tar = write_pairs(tmp_path / "a.tar", ["sa_000/sa_1", "000000000009"])
    opened = source("webdataset", tar, captions=[str(write_json(tmp_path / "a.json", entries))])
    assert [opened[0].captions, opened[1].captions] == [("One.",), ("Nine.",)]  # type: ignore[union-attr]


def test_the_whole_key_decides_between_captions(tmp_path: Path) -> None:
    entries = [{"image": f"{folder}/1.png", "caption": f"of {folder}"} for folder in ("a", "b", "c")]
    same = [{"key": "a/2", "caption": "same"}, {"key": "b/2", "caption": "same"}]
    paths = [write_json(tmp_path / "1.json", entries), write_json(tmp_path / "2.json", same)]
    files = CaptionFiles(paths, tmp_path / "cache")
    assert files.find("b/1", "x") == "of b"
    assert files.find("2", "x") == "same"
    with pytest.raises(SampleError, match=r"x: several captions for '1', those of 'a/1\.png', 'b/1\.png', 'c/1\.png'"):
        files.find("1", "x")
    with pytest.raises(SampleError, match=r"x: no caption for '3'"):
        files.find("3", "x")


def test_files_without_captions_are_refused(tmp_path: Path) -> None:
    cases = {
        write_json(
            tmp_path / "a.json", [{"key": "x", "text": "y"}]
        ): r"a\.json: no captions; expected entries with key",
        write_json(tmp_path / "b.jsonl", ["x"]): r"b\.jsonl: no captions",
        write_table(
            tmp_path / "c.parquet", {"key": ["x"], "text": ["y"]}
        ): r"c\.parquet: columns .*; expected key or id",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            CaptionFiles([path], tmp_path / "cache")


def test_captions_that_change_under_a_running_epoch_stop_it(tmp_path: Path) -> None:
    tar = write_pairs(tmp_path / "a.tar", ["x"])
    for name in ("a.json", "a.parquet"):
        path = tmp_path / name
        if path.suffix == ".json":
            write_json(path, {"x": "y"})
        else:
            write_table(path, {"key": ["x"], "caption": ["y"]})
        opened = source("webdataset", tar, captions=[str(path)])
        assert opened[0].captions == ("y",)  # type: ignore[union-attr]
        os.utime(path, ns=(1, 1))
        with pytest.raises(DataError, match=rf"{name}: has changed since it was indexed"):
            opened[0]
