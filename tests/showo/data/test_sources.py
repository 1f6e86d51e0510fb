"""What every layout gives, sample by sample, and what it does with data that are not as they should be."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from showo.data.sample import CaptionedPicture, Conversation, Document, Picture, PictureSequence, Source, Turn
from showo.data.sources.config import LAYOUTS
from showo.data.tar import write_tar
from showo.errors import ConfigError, DataError, SampleError
from tests.showo.data.layouts import conversation, png, source, write_json, write_pairs, write_table


def reasons(opened: Source) -> list[str]:
    """What is wrong with each sample; "" where nothing is."""
    found = []
    for index in range(len(opened)):
        try:
            opened[index]
            found.append("")
        except SampleError as error:
            found.append(error.reason)
    return found


def captioned(opened: Source) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.key, sample.captions) for sample in map(opened.__getitem__, range(len(opened)))]  # type: ignore[union-attr]


# ---- every layout ----------------------------------------------------------------------------------------------------


def webdataset(folder: Path) -> Source:
    return source("webdataset", write_pairs(folder / "a.tar", ["x", "d/y"]), write_pairs(folder / "b.tar", ["z"]))


def imagenet(folder: Path) -> Source:
    for wnid, names in (("n1", ("a.JPEG", "b.png", "notes.txt")), ("n2", ()), ("n3", ("c.webp", ".hidden.png"))):
        (folder / "root" / wnid).mkdir(parents=True)
        for name in names:
            (folder / "root" / wnid / name).write_bytes(png())
    (folder / "names").write_text("n1 tench, Tinca tinca\nn2 goldfish\nn3 great white shark, white shark\n")
    return source("imagenet", folder / "root", cache=folder / "cache", class_names=str(folder / "names"))


def codes(folder: Path) -> Source:
    rows = {"key": ["a", "b"], "codes": [[0, 5], [3, 1]], "caption": ["red", "blue"], "source": ["s", "s"]}
    return source("codes", write_table(folder / "a.parquet", rows, group=1))


def tar_text(folder: Path) -> Source:
    write_tar(folder / "a.tar", [("x.txt", b"\xef\xbb\xbfone\r\n two\n"), ("d/y.txt", b"three")])
    return source("tar_text", folder / "a.tar")


def parquet_text(folder: Path) -> Source:
    texts = [f"text {i}\n" for i in range(7)]
    first = write_table(folder / "a.parquet", {"url": ["u"] * 5, "content": texts[:5]}, group=2)
    return source("parquet_text", first, write_table(folder / "b.parquet", {"content": texts[5:]}))


def llava(folder: Path) -> Source:
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(png())
    entries = [
        conversation("one", "<image>\nWhat is it?", " A bird.", "Where?", "In a tree.", image="1.png"),
        conversation("none", "Hello", "Hi"),
        conversation("two", "<image> <image>\nCompare.", "The same.", image=["1.png", "2.png"]),
    ]
    return source("llava", write_json(folder / "a.json", entries))


def llava_captions(folder: Path) -> Source:
    (folder / "1.png").write_bytes(png())
    entries = [conversation("one", "<image>\nWhat is it?", "This is a bird.", image="1.png")]
    return source("llava_captions", write_json(folder / "a.json", entries), clean=["prefixes"])


def sequences(folder: Path) -> Source:
    (folder / "images").mkdir()
    (folder / "images" / "1.png").write_bytes(png())
    frames = [{"image": "1.png", "caption": "a ring"}, {"image": "1.png", "caption": "add a star"}]
    path = write_json(folder / "a.jsonl", [{"id": "s", "frames": frames}])
    return source("sequences", path, images=str(folder / "images"))


SOURCES: dict[str, Callable[[Path], Source]] = {
    f.__name__: f for f in (webdataset, imagenet, codes, tar_text, parquet_text, llava, llava_captions, sequences)
}


def plain(value: Any) -> Any:
    """A sample as values that compare."""
    if isinstance(value, Picture):
        return (value.origin, value.data, value.path, None if value.codes is None else value.codes.tolist())
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    fields = getattr(value, "__dataclass_fields__", None)
    return value if fields is None else tuple(plain(getattr(value, name)) for name in fields)


def test_captions_of_every_layout_are_cleaned(tmp_path: Path) -> None:
    written, clean = "the <person> runs", ["persons"]
    write_tar(tmp_path / "a.tar", [("x.png", png()), ("x.txt", written.encode())])
    (tmp_path / "classes" / "n1").mkdir(parents=True)
    (tmp_path / "classes" / "n1" / "a.png").write_bytes(png())
    (tmp_path / "names").write_text(f"n1 {written}\n")
    (tmp_path / "1.png").write_bytes(png())
    said = [conversation("one", "What is it?", written, image="1.png")]
    steps = [{"id": "s", "frames": [{"image": "1.png", "caption": written}]}]
    table = write_table(tmp_path / "a.parquet", {"key": ["a"], "codes": [[0]], "caption": [written]})
    for opened in (
        source("webdataset", tmp_path / "a.tar", clean=clean),
        source("imagenet", tmp_path / "classes", class_names=str(tmp_path / "names"), clean=clean),
        source("codes", table, clean=clean),
        source("llava_captions", write_json(tmp_path / "a.json", said), clean=clean),
    ):
        assert captioned(opened)[0][1] == ("the a person runs",), opened.name
    (frame,) = source("sequences", write_json(tmp_path / "a.jsonl", steps), clean=clean)[0].frames  # type: ignore[union-attr]
    assert frame.caption == "the a person runs"


def test_there_is_a_case_for_every_layout() -> None:
    assert SOURCES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", SOURCES)
def test_a_source_is_a_pure_function_that_can_move_to_another_process(layout: str, tmp_path: Path) -> None:
    opened = SOURCES[layout](tmp_path)
    samples = [opened[index] for index in range(len(opened))]
    assert all(type(sample) is opened.kind for sample in samples)
    assert len({sample.key for sample in samples}) == len(samples)
    moved = pickle.loads(pickle.dumps(opened))
    backwards = [plain(moved[index]) for index in reversed(range(len(moved)))]
    assert backwards[::-1] == [plain(sample) for sample in samples]
    assert opened.name.startswith(layout)
    for beyond in (len(opened), -1):
        with pytest.raises(IndexError):
            opened[beyond]


def test_webdataset_pairs(tmp_path: Path) -> None:
    opened = webdataset(tmp_path)
    expected = [("x", ("caption of x",)), ("d/y", ("caption of d/y",)), ("z", ("caption of z",))]
    assert captioned(opened) == expected
    picture = opened[1].picture  # type: ignore[union-attr]
    assert picture.open().size == (4, 4)
    assert picture.origin == f"{tmp_path / 'a.tar'}: d/y.png"


def test_webdataset_captions_in_json_and_hidden_files(tmp_path: Path) -> None:
    files = [
        ("._x.png", b"mac"), ("x.png", png()), ("x.json", b'{"caption": "one\\u00a0two"}'), ("x.cls", b"3"),
        ("y.JPG", png()), ("y.json", b'{"captions": ["a", "b", "a"], "width": 4}'), (".DS_Store", b"mac"),
        ("z.txt", b"text wins"), ("z.json", b'{"caption": "json"}'), ("z.png", png()),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", files)
    assert captioned(source("webdataset", tmp_path / "a.tar")) == [
        ("x", ("one two",)),
        ("y", ("a", "b")),
        ("z", ("text wins",)),
    ]


def test_imagenet_classes_give_the_captions(tmp_path: Path) -> None:
    assert captioned(imagenet(tmp_path)) == [
        ("n1/a.JPEG", ("tench",)),
        ("n1/b.png", ("tench",)),
        ("n3/c.webp", ("great white shark",)),
    ]


def test_codes(tmp_path: Path) -> None:
    first, second = (codes(tmp_path)[index] for index in (0, 1))
    assert isinstance(first, CaptionedPicture)
    assert isinstance(second, CaptionedPicture)
    assert second.picture.codes is not None
    assert second.picture.codes.dtype == np.int64
    assert (second.key, second.picture.codes.tolist(), second.captions) == ("b", [3, 1], ("blue",))
    with pytest.raises(TypeError, match="codes alone"):
        first.picture.open()


def test_documents_are_kept_as_they_are(tmp_path: Path) -> None:
    opened = tar_text(tmp_path)
    assert [opened[0], opened[1]] == [Document("x", "one\r\n two\n"), Document("d/y", "three")]
    (tmp_path / "parquet").mkdir()
    opened = parquet_text(tmp_path / "parquet")
    assert [opened[index].text for index in range(7)] == [f"text {i}\n" for i in range(7)]  # type: ignore[union-attr]
    assert opened[3].key == "a.parquet: row 1 of group 1"
    texts = write_table(tmp_path / "c.parquet", {"words": ["w"], "text": ["t"]})
    assert source("parquet_text", texts)[0].text == "t"  # type: ignore[union-attr]
    assert source("parquet_text", texts, column="words")[0].text == "w"  # type: ignore[union-attr]


def test_llava_conversations(tmp_path: Path) -> None:
    one, none, two = (llava(tmp_path)[index] for index in range(3))
    assert isinstance(one, Conversation)
    assert isinstance(none, Conversation)
    assert isinstance(two, Conversation)
    assert one.turns == (Turn("What is it?", "A bird."), Turn("Where?", "In a tree."))
    assert [picture.path for picture in one.pictures] == [tmp_path / "1.png"]
    assert (none.pictures, none.turns) == ((), (Turn("Hello", "Hi"),))
    assert [picture.open().size for picture in two.pictures] == [(4, 4), (4, 4)]
    assert two.turns[0].question == "Compare."


def test_llava_captions(tmp_path: Path) -> None:
    (sample,) = captioned(llava_captions(tmp_path))
    assert sample == ("one", ("A bird.",))
    entries = [
        conversation("twice", "What?", "A bird.", "Sure?", "Yes.", image="1.png"),
        conversation("none", "What?", "A bird."),
        conversation("two", "What?", "A bird.", image=["1.png", "1.png"]),
        conversation("good", "What?", "A bird.", image="1.png"),
    ]
    opened = source("llava_captions", write_json(tmp_path / "b.json", entries))
    assert reasons(opened) == [*["wrong conversation"] * 3, ""]
    with pytest.raises(SampleError, match=r"b\.json: twice: expected one .*, got 2 questions about 1 pictures"):
        opened[0]


def test_sequences(tmp_path: Path) -> None:
    (sequence,) = (sequences(tmp_path)[index] for index in range(1))
    assert isinstance(sequence, PictureSequence)
    assert [frame.caption for frame in sequence.frames] == ["a ring", "add a star"]
    assert sequence.frames[1].picture.path == tmp_path / "images" / "1.png"


# ---- broken samples: each alone, with a reason and the name of its file --------------------------------------------


def test_faults_of_pairs(tmp_path: Path) -> None:
    good = [("x.png", png()), ("x.txt", b"one")]
    cases = [
        ([("x.png", png())], "no caption"),
        ([("x.txt", b"one")], "no picture"),
        ([*good, ("x.jpg", png())], "several pictures"),
        ([*good, ("x.txt", b"two")], "several files of one type"),
        ([("x.png", png()), ("x.txt", " \ufeff\n".encode())], "no caption"),
        ([("x.png", png()), ("x.txt", "caf\u00e9".encode("latin-1"))], "text is not UTF-8"),
        ([("x.png", png()), ("x.txt", b"a" * 100_001)], "too large"),
        ([("x.png", png()), ("x.json", b'{"caption": 3}')], "wrong caption"),
        ([("x.png", png()), ("x.json", b'{"caption": "\\ud800"}')], "damaged entry"),
        ([("x.png", png()), ("x.json", b'{"caption": "a"')], "damaged entry"),
        ([("x.png", png()), ("x.json", b'["a"]')], "no caption"),
    ]
    for number, (files, reason) in enumerate(cases):
        path = tmp_path / f"{number}.tar"
        write_tar(path, [("w.png", png()), ("w.txt", b"before"), *files, ("y.png", png()), ("y.txt", b"after")])
        opened = source("webdataset", path)
        assert reasons(opened) == ["", reason, ""], number
        with pytest.raises(SampleError, match=rf"{number}\.tar: x"):
            opened[1]


def test_faults_of_conversations(tmp_path: Path) -> None:
    cases = [
        (conversation("a", "<image> What?", "That."), "wrong conversation"),
        (conversation("b", "What?", "<image>", image="1.png"), "wrong conversation"),
        (conversation("c", "What?"), "wrong conversation"),
        (conversation("d", "What?", " "), "wrong conversation"),
        ({"id": "e", "conversations": [{"from": "human", "value": "?"}] * 2}, "wrong conversation"),
        ({"id": "f", "conversations": "text"}, "wrong conversation"),
        (conversation("g", "What?", "That.", image="../../etc/passwd"), "path outside its folder"),
        (conversation("h", "What?", "That.", image="/etc/passwd"), "path outside its folder"),
        (conversation("i", "What?", "That.", image=["1.png", 3]), "wrong path"),
        (conversation("j", "\ud800", "That."), "damaged entry"),
        (3, "damaged entry"),
    ]  # fmt: skip
    opened = source(
        "llava", write_json(tmp_path / "a.json", [*(case for case, _ in cases), conversation("z", "?", "!")])
    )
    assert reasons(opened) == [*(reason for _, reason in cases), ""]
    with pytest.raises(SampleError, match=r"a\.json: byte \d+: g: '\.\./\.\./etc/passwd' is no path within"):
        opened[6]
    missing = source("llava", write_json(tmp_path / "b.json", [conversation("a", "?", "!", image="gone.png")]))
    with pytest.raises(SampleError, match=r"b\.json.*gone\.png: no such file") as error:
        missing[0].pictures[0].open()  # type: ignore[union-attr]
    assert error.value.reason == "missing file"


def test_an_answer_that_nothing_asked_for_is_left_out(tmp_path: Path) -> None:
    entry = conversation("a", "(question)", "Hello!", "What?", "That.")
    del entry["conversations"][0]
    assert source("llava", write_json(tmp_path / "a.json", [entry]))[0].turns == (Turn("What?", "That."),)  # type: ignore[union-attr]


def test_faults_of_sequences_and_tables(tmp_path: Path) -> None:
    frame = {"image": "1.png", "caption": "a"}
    lines = [{"frames": [frame]}, {"frames": []}, {"frames": [3]}, {"frames": [{**frame, "caption": ""}]}]
    assert reasons(source("sequences", write_json(tmp_path / "a.jsonl", lines))) == [
        "", "wrong sequence", "wrong sequence", "no caption"
    ]  # fmt: skip
    rows = {"key": ["a", "b", "c", "d"], "codes": [[1], [], [-1], None], "caption": [None, "b", "c", "d"]}
    assert reasons(source("codes", write_table(tmp_path / "a.parquet", rows))) == ["no caption", *["wrong codes"] * 3]
    texts = write_table(tmp_path / "b.parquet", {"text": ["a", None, " \n", "d"]})
    assert reasons(source("parquet_text", texts)) == ["", "no text", "no text", ""]


def test_links_out_of_a_folder_of_classes_are_refused(tmp_path: Path) -> None:
    opened = imagenet(tmp_path)
    (tmp_path / "root" / "n1" / "b.png").unlink()
    (tmp_path / "root" / "n1" / "b.png").symlink_to(tmp_path / "names")
    with pytest.raises(SampleError, match=r"n1/b\.png.* leads out of .*n1 by a link"):
        opened[1]
    (tmp_path / "root" / "n4").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"root/n4: 'n4' leads out of .*root by a link"):
        source("imagenet", tmp_path / "root", class_names=str(tmp_path / "names"))


def test_a_damaged_row_group_breaks_its_rows_alone(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"text": [f"text {i}" * 50 for i in range(6)]}, group=3)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 60 + data[64:])
    assert reasons(source("parquet_text", path)) == [*["damaged row group"] * 3, *[""] * 3]


# ---- sources that are no use at all ------------------------------------------------------------------------------


def test_what_is_no_source(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"words": ["a"]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "n1").mkdir(parents=True)
    (tmp_path / "names").write_text("n2 tench\n")
    (tmp_path / "short").write_text("n1\n")
    write_tar(tmp_path / "empty.tar", [])
    (tmp_path / "cut.parquet").write_bytes(table.read_bytes()[:-9])
    (tmp_path / "text.json").write_text("words")
    (tmp_path / "none.json").write_text("")
    more = {"class_names": str(tmp_path / "names")}
    cases: list[tuple[str, str, dict[str, str], str]] = [
        ("pictures", "t.parquet", {}, r"layout must be one of webdataset, .*, got 'pictures'"),
        ("webdataset", "absent-*.tar", {}, r"no file matches '.*absent-\*\.tar'"),
        ("webdataset", "empty.tar", {}, r"no samples in .*empty\.tar"),
        ("webdataset", "empty", {}, r"empty: no file; expected a tar"),
        ("webdataset", "t.parquet", {}, r"t\.parquet: damaged or no tar archive: at byte 0"),
        ("parquet_text", "t.parquet", {}, r"t\.parquet: no column 'content or text'; it has words"),
        ("parquet_text", "t.parquet", {"column": "x"}, r"t\.parquet: no column 'x'; it has words"),
        ("parquet_text", "cut.parquet", {}, r"cut\.parquet: not a parquet file, or not a whole one"),
        ("codes", "t.parquet", {}, r"t\.parquet: no shard of codes, has no column 'key'"),
        ("imagenet", "classes", {}, r"class_names must be the file of the classes' names"),
        ("imagenet", "classes", more, r"names: no name for n1"),
        ("imagenet", "classes", {"class_names": str(tmp_path / "short")}, r"short: line 1: expected a class and"),
        ("imagenet", "empty", more, r"empty: no folders in it; expected one for every class"),
        ("llava", "text.json", {}, r"text\.json: no JSON list or object begins"),
        ("llava", "none.json", {}, r"none\.json: is empty; expected JSON"),
        ("llava", "a.json", {}, r"a\.json: expected entries with 'conversations', but its first entry has caption"),
        ("llava", "map.json", {}, r"map\.json: expected entries with 'conversations', but .*expected an object"),
        ("llava", "a.json", {"images": str(tmp_path / "gone")}, r"gone: no such folder"),
    ]  # fmt: skip
    write_json(tmp_path / "a.json", [{"caption": "b"}])
    write_json(tmp_path / "map.json", {"a": "b"})
    for layout, name, options, message in cases:
        with pytest.raises((DataError, ConfigError), match=message):
            source(layout, tmp_path / name, cache=tmp_path / "cache", **options)
