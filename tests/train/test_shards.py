"""Shard readers: what they return, and what they do with hostile or broken files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from showo.data import shards
from showo.data.make_assets import encode_png
from showo.data.patterns import find_paths
from showo.data.shards import (
    Shuffled,
    load_images,
    read_files,
    read_pairs,
    read_texts,
)
from showo.data.tar import write_tar
from showo.errors import DataError
from showo.pictures import open_image


def png(size: tuple[int, int] = (4, 4)) -> bytes:
    return encode_png(Image.new("RGB", size, "red"))


def test_bundled_pictures_are_what_the_readme_says() -> None:
    train, val = read_pairs(["bundled:emoji/train-*.tar"]), read_pairs(["bundled:emoji/val-*.tar"])
    assert len(train) + len(val) >= 1200
    assert 0.03 < len(val) / (len(train) + len(val)) < 0.07
    assert not {s.key for s in train} & {s.key for s in val}
    assert len({s.caption for s in train}) == len(train)
    assert all(open_image(s.image).size == (64, 64) for s in train[:20] + val[:20])
    assert sum(p.stat().st_size for p in find_paths(["bundled:emoji/*.tar"])) < 12e6


def test_bundled_text_is_long_enough_to_learn_from() -> None:
    assert sum(map(len, read_texts(["bundled:text/*.tar"]))) > 300_000


def test_pairs_keep_order_and_captions(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("x.png", png()), ("x.txt", b"one"), ("d/y.txt", "zwei \u00e4".encode()), ("d/y.png", png())],
    )
    samples = read_pairs([str(tmp_path / "*.tar")])
    assert [(s.key, s.caption) for s in samples] == [("x", "one"), ("d/y", "zwei \u00e4")]


def test_incomplete_pair_names_shard_and_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", png()), ("y.png", png()), ("y.txt", b"two")])
    with pytest.raises(ValueError, match=r"a\.tar.*'x'"):
        read_pairs([str(tmp_path / "a.tar")])


def test_captions_are_cleaned_and_texts_kept(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", png()), ("x.txt", b"\xef\xbb\xbfred\r\n apple\n")])
    assert read_pairs([str(tmp_path / "a.tar")])[0].caption == "red apple"
    assert read_texts([str(tmp_path / "a.tar")]) == ["red\r\n apple\n"]


def test_captions_in_another_encoding_name_file_and_byte(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("d/x.png", png()), ("d/x.txt", "caf\u00e9".encode("latin-1"))])
    with pytest.raises(DataError, match=r"a\.tar: d/x\.txt: expected UTF-8, got byte 0xe9 at 3; .*iconv"):
        read_pairs([str(tmp_path / "a.tar")])


def test_unreadable_pictures_name_shard_and_member(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", b"not a picture"), ("x.txt", b"one")])
    with pytest.raises(ValueError, match=r"a\.tar: x\.jpg: not a readable picture"):
        load_images(read_pairs([str(tmp_path / "a.tar")]), 8)


@pytest.mark.parametrize(
    ("kind", "word"), [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.FIFOTYPE, "FIFO")]
)
def test_links_and_devices_are_neither_followed_nor_left_out(tmp_path: Path, kind: bytes, word: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x.txt")
        info.type, info.linkname = kind, str(secret)
        tar.addfile(info)
    with pytest.raises(DataError, match=rf"a\.tar: x\.txt is a {word}"):
        list(read_files(tmp_path / "a.tar"))


def test_a_damaged_shard_gives_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"words") for i in range(30)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:5000])
    with pytest.raises(DataError, match=r"a\.tar: damaged .* at byte"):
        read_texts([str(tmp_path / "a.tar")])


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    files = [("._x.png", b"mac"), ("x.png", png()), ("._x.txt", b"mac"), ("x.txt", b"one"), (".DS_Store", b"mac")]
    write_tar(tmp_path / "a.tar", files)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [sample.caption for sample in read_pairs([str(tmp_path / "a.tar")])] == ["one"]


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", [("x.txt", b"one")])

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read: Permission denied"):
        read_texts([str(tmp_path / "a.tar")])


def test_two_files_of_one_type_in_a_sample_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", png()), ("x.txt", b"one"), ("x.txt", b"two")])
    with pytest.raises(DataError, match=r"a\.tar: sample 'x' has several files of one type"):
        read_pairs([str(tmp_path / "a.tar")])


def test_a_folder_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match=r"a\.tar: no file; expected a tar"):
        read_pairs([str(tmp_path / "*.tar")])


def test_oversized_member_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_FILE_BYTES", 10)
    write_tar(tmp_path / "a.tar", [("x.txt", b"12345678901")])
    with pytest.raises(ValueError, match="11 bytes"):
        list(read_files(tmp_path / "a.tar"))


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    """A compressed tar may unpack to any size."""
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        info = tarfile.TarInfo("x.txt")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match="gzip data"):
        list(read_files(tmp_path / "a.tar"))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 50), seed=st.integers(0, 2**31), start=st.integers(0, 500), count=st.integers(0, 120))
def test_shuffled_is_a_pure_function_and_visits_everything(n: int, seed: int, start: int, count: int) -> None:
    whole = Shuffled(n, seed).indices(0, start + count)
    assert Shuffled(n, seed).indices(start, count) == whole[start:]
    for epoch in range(len(whole) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(Shuffled(40, seed).indices(epoch * 40, 40)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9
    assert tuple(range(40)) not in orders
