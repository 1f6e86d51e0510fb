"""`showo tokenize`: shards are the codes of the pictures, whatever stops a run on its way, and of nothing else."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

import showo.data.code_shards
import showo.files
from showo.data.code_shards import Encoding
from showo.data.make_assets import encode_png
from showo.data.sample import CaptionedPicture
from showo.data.sources.config import SourceConfig
from showo.data.tar import write_tar
from showo.data.tokenize import Tokenized, Tokenizing, open_captioned
from showo.errors import DataError, OutputError, RunInUseError
from showo.lock import run_lock
from showo.model.image_tokenizer import ImageTokenizer
from showo.pictures import fit, to_tensor
from tests.showo.command import failure, run
from tests.showo.data.layouts import png, source, write_json
from tests.train.test_resume import largest_file

SAMPLES, SHARD, SIDE = 23, 5, 16
KEYS = [f"{number:03}" for number in range(SAMPLES)]


def write_pictures(path: Path, broken: dict[str, bytes] | None = None, captions: dict[str, str] | None = None) -> Path:
    """A tar of noise in several shapes; `broken` has the bytes of pictures that are none."""
    files = []
    for number, key in enumerate(KEYS):
        noise = Image.effect_noise((20 + number, 30), 90).convert("RGB")
        files.append((f"{key}.png", (broken or {}).get(key) or encode_png(noise)))
        files.append((f"{key}.txt", (captions or {}).get(key, f"caption of {key}").encode()))
    write_tar(path, files)
    return path


@pytest.fixture
def images(checkpoint: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(checkpoint / "image_tokenizer")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "a.tar")


def tokenize(images: ImageTokenizer, tar: Path, folder: Path, workers: int = 0, resolution: int = SIDE) -> Tokenized:
    config = SourceConfig(layout="webdataset", files=[str(tar)])
    opened, origin = open_captioned(config, SHARD, tar.parent / "cache")
    encoding, codes = Encoding.of(images, "here", resolution), (resolution // 4) ** 2
    making = Tokenizing(opened, origin, folder, encoding, images.encode_pixels, codes, 64, 2, workers)
    return making.run(Console(quiet=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_hold_the_codes_of_the_pictures(images: ImageTokenizer, tar: Path, tmp_path: Path, workers: int) -> None:
    done = tokenize(images, tar, tmp_path / "codes", workers)
    assert (done.pictures, done.shards, done.made) == (SAMPLES, 5, 5)
    paths = sorted((tmp_path / "codes").iterdir())
    assert [path.name for path in paths] == [f"{number:05d}-of-00005.parquet" for number in range(5)]
    pictures, codes = source("webdataset", tar), source("codes", *paths, cache=tmp_path / "cache")
    assert len(codes) == SAMPLES
    for number in range(SAMPLES):
        before, after = pictures[number], codes[number]
        assert isinstance(before, CaptionedPicture)
        assert isinstance(after, CaptionedPicture)
        assert (after.key, after.captions) == (KEYS[number], before.captions)
        with torch.no_grad():
            expected = images.encode(to_tensor(fit(before.picture.open(), (SIDE, SIDE)))[None])[0]
        assert after.picture.codes is not None
        assert after.picture.codes.tolist() == expected.tolist()
    assert set(pq.read_table(paths[0])["source"].to_pylist()) == {f"webdataset {tar}"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halfway(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MOMENTS: dict[str, tuple[Any, str, Callable[..., object]]] = {
    "before a shard is written": (showo.data.code_shards.pq, "write_table", lambda real, *a, **k: die()),
    "in the middle of writing": (
        showo.data.code_shards.pq,
        "write_table",
        lambda real, *a, **k: (real(*a, **k), halfway(a[1]), die()),
    ),
    "before it is renamed": (showo.files.os, "replace", lambda real, *a: die()),
    "after it was renamed": (showo.files.os, "replace", lambda real, *a: (real(*a), die())),
}


def killed(moment: str, shard: int, work: Callable[[], object]) -> None:
    """`work` in another process, which kills itself with SIGKILL while it makes its shard of that number."""
    child = os.fork()
    if child == 0:
        module, name, act = MOMENTS[moment]
        real, calls = getattr(module, name), iter(range(10**6))
        setattr(module, name, lambda *a, **k: act(real, *a, **k) if next(calls) == shard else real(*a, **k))
        torch.set_num_threads(1)  # OpenMP's threads do not survive the fork: a parallel region would wait for them
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_goes_on_to_the_same_shards(
    images: ImageTokenizer, tar: Path, tmp_path: Path, moment: str
) -> None:
    tokenize(images, tar, tmp_path / "whole")
    folder = tmp_path / "killed"
    for shard in (0, 1):
        killed(moment, shard, lambda: tokenize(images, tar, folder))
        assert all(path.read_bytes() == contents(tmp_path / "whole")[path.name] for path in folder.glob("0*.parquet"))
    there = {path: path.stat().st_ino for path in folder.glob("0*.parquet")}
    assert len(there) == (3 if moment == "after it was renamed" else 1)
    assert tokenize(images, tar, folder).made == 5 - len(there)
    assert contents(folder) == contents(tmp_path / "whole")
    assert all(path.stat().st_ino == inode for path, inode in there.items())


def test_broken_pictures_are_skipped_counted_and_listed(
    images: ImageTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut, none = encode_png(Image.effect_noise((30, 30), 90).convert("RGB"))[:300], b"<html>404</html>"
    tar = write_pictures(tmp_path / "a.tar", {"001": cut, "002": none, "022": cut}, {"011": " "})
    done = tokenize(images, tar, tmp_path / "codes")
    assert done.pictures == SAMPLES - 4
    assert done.faults.table().split("\n")[0].split()[-3:] == ["unreadable", "picture", "3"]
    assert dict(done.faults.counts) == {(0, "unreadable picture"): 3, (0, "no caption"): 1}
    found = pq.read_table(tmp_path / "codes")["key"].to_pylist()
    assert found == [key for key in KEYS if key not in ("001", "002", "022", "011")]
    listed = [record.getMessage() for record in caplog.records]
    assert len(listed) == 4
    assert f"{tar}: 022.png" in listed[-1]
    (tmp_path / "codes" / "00002-of-00005.parquet").unlink()
    caplog.clear()
    again = tokenize(images, tar, tmp_path / "codes")
    assert (again.made, again.faults.counts) == (1, done.faults.counts)
    assert [record.getMessage() for record in caplog.records] == listed


def test_a_shard_whose_samples_are_all_broken_is_empty(images: ImageTokenizer, tmp_path: Path) -> None:
    tar = write_pictures(tmp_path / "a.tar", dict.fromkeys(KEYS[:SHARD], b"no picture"))
    assert tokenize(images, tar, tmp_path / "codes").pictures == SAMPLES - SHARD
    codes = source("codes", *sorted((tmp_path / "codes").iterdir()), cache=tmp_path / "cache")
    assert len(codes) == SAMPLES - SHARD
    assert codes[0].key == KEYS[SHARD]


def test_a_source_without_a_usable_sample_is_no_shard(images: ImageTokenizer, tmp_path: Path) -> None:
    """Of few samples too, whose share says little otherwise."""
    write_tar(tmp_path / "a.tar", [("1.png", png()), ("2.png", png())])
    with pytest.raises(DataError, match=r"a\.tar: not one of 2 samples can be used\n.*no caption +2"):
        tokenize(images, tmp_path / "a.tar", tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_too_many_broken_pictures_end_the_run(images: ImageTokenizer, tmp_path: Path) -> None:
    files = [(f"{number:04}.{kind}", b"x") for number in range(120) for kind in ("png", "txt")]
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"10[0-9] of 10[0-9] samples cannot be used.*\n.*unreadable picture +10[0-9]"):
        tokenize(images, tmp_path / "a.tar", tmp_path / "codes")


def test_a_full_disk_keeps_what_is_finished(images: ImageTokenizer, tmp_path: Path) -> None:
    words = {"012": " ".join(str(torch.randn(1).item()) for _ in range(2000))}
    tar = write_pictures(tmp_path / "a.tar", captions=words)
    whole, folder = tmp_path / "whole", tmp_path / "codes"
    tokenize(images, tar, whole)
    with largest_file(10_000), pytest.raises(OutputError, match=r"cannot write .*00002-of-00005.parquet: .*same comm"):
        tokenize(images, tar, folder)
    assert contents(folder) == {name: contents(whole)[name] for name in sorted(contents(whole))[:2]}
    tokenize(images, tar, folder)
    assert contents(folder) == contents(whole)


def change(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            {"resolution": 32},
            r"00000-of-00005.parquet was made with another resolution, 16, not 32; choose another fold",
        ),
        ({"tokenizer": "other"}, r"was made with another encoder, [0-9a-f]{64}, not [0-9a-f]{64}"),
        ({"tar": change}, r"was made of other files, or of these before they changed; choose"),
        ({"shard": 6}, r"was made with another shard_size, 5, not 6"),
    ],
)
def test_a_folder_takes_one_data_set_encoded_in_one_way(
    images: ImageTokenizer, tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: dict, said: str
) -> None:
    folder = tmp_path / "codes"
    tokenize(images, tar, folder)
    before = contents(folder)
    if "tokenizer" in what:
        with torch.no_grad():
            images.encoder.quant_conv.bias += 1
    what.get("tar", lambda path: None)(tar)
    monkeypatch.setattr("tests.showo.data.test_tokenize.SHARD", what.get("shard", SHARD))
    with pytest.raises(OutputError, match=said):
        tokenize(images, tar, folder, resolution=what.get("resolution", SIDE))
    assert contents(folder) == before


def test_other_files_in_the_folder_are_refused(images: ImageTokenizer, tar: Path, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    tokenize(images, tar, folder)
    (folder / "00004-of-00005.parquet").rename(folder / "last.parquet")
    with pytest.raises(OutputError, match=r"last.parquet: its name is none of 00000-of-00005.parquet to 00004-of"):
        tokenize(images, tar, folder)
    table = pq.read_table(folder / "last.parquet").replace_schema_metadata(None)
    pq.write_table(table, folder / "last.parquet")
    with pytest.raises(OutputError, match=r"last.parquet is no shard of showo tokenize"):
        tokenize(images, tar, folder)


def test_one_process_at_a_time(images: ImageTokenizer, tar: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path / "codes"), pytest.raises(RunInUseError, match=rf"{tmp_path}/codes is in use by"):
        tokenize(images, tar, tmp_path / "codes")


def test_the_command(checkpoint: Path, tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classes" / "n01").mkdir(parents=True)
    (tmp_path / "classes" / "n01" / "a.png").write_bytes(png(size=(20, 20)))
    (tmp_path / "names.txt").write_text("n01 red square, square of red\n")
    written = write_json(tmp_path / "more.json", {key: [f"a {key}", f"one {key}"] for key in KEYS})
    common = ("--image-tokenizer", checkpoint / "image_tokenizer", "--resolution", 16, "--workers", 0)
    out = tmp_path / "pairs"
    command = ("tokenize", "webdataset", tar, "--captions", written, "--output-dir", out, "--shard-size", 20, *common)
    assert run(*command) == 0
    assert capsys.readouterr().out == (
        f"{out}: {SAMPLES} pictures of 16 codes in 2 shards, 2 of them made now; 0 samples skipped\n"
    )
    assert pq.read_table(out)["caption"].to_pylist()[3] == ["a 003", "one 003"]
    names = ("--class-names", tmp_path / "names.txt")
    assert run("tokenize", "imagenet", tmp_path / "classes", *names, "--output-dir", tmp_path / "objects", *common) == 0
    assert pq.read_table(tmp_path / "objects").select(["key", "caption"]).to_pylist() == [
        {"key": "n01/a.png", "caption": ["red square"]}
    ]


def test_the_command_says_how_many_may_be_broken(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [(f"{number:04}.{kind}", b"x") for number in range(120) for kind in ("png", "txt")]
    write_tar(tmp_path / "a.tar", [*broken, ("a.png", png(size=(20, 20))), ("a.txt", b"a")])
    command = ("tokenize", "webdataset", tmp_path / "a.tar", "--output-dir", tmp_path / "codes", "--workers", 0)
    command += ("--image-tokenizer", checkpoint / "image_tokenizer", "--resolution", 16)
    assert "samples cannot be used, more than 50.0%" in failure(capsys, *command, "--broken-share", 0.5)
    assert run(*command, "--broken-share", 1) == 0
    assert "1 pictures of 16 codes in 1 shards, 1 of them made now; 120 samples skipped" in capsys.readouterr().out


def test_what_the_command_refuses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--output-dir", tmp_path / "codes", "--image-tokenizer", checkpoint / "image_tokenizer")
    said = failure(capsys, "tokenize", "llava", tmp_path / "a.json", *common)
    assert "layout must be one of webdataset, imagenet, got 'llava'; pictures of conversations and sequences" in said
    assert "no file matches" in failure(capsys, "tokenize", "webdataset", tmp_path / "a.tar", *common)
    said = failure(capsys, "tokenize", "webdataset", tmp_path / "a.tar", *common, "--resolution", 18)
    assert "--resolution must be a multiple of 4, got 18" in said
    (tmp_path / "codes").write_text("a file")
    assert "is a file; expected a folder" in failure(capsys, "tokenize", "webdataset", tmp_path / "a.tar", *common)


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    caplog.set_level(logging.WARNING)
