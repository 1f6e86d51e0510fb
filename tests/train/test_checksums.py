"""Checksums of a checkpoint: whatever happens to a file of it is seen."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from showo.errors import CheckpointError
from showo.train.checksums import SUMS_NAME, check_checksums, write_checksums
from tests.train.conftest import damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder, random_ = tmp_path / "step", random.Random(0)
    for name in ("config.json", "model.safetensors", "text/tokenizer.json", "training.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random_.randbytes(1000))
    write_checksums(folder)
    return folder


def test_a_whole_folder_passes(folder: Path, tmp_path: Path) -> None:
    (folder / ".nfs0001").touch()
    check_checksums(folder)
    check_checksums(shutil.copytree(folder, tmp_path / "elsewhere"))


def test_every_damage_is_seen(folder: Path) -> None:
    random_ = random.Random(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(200):
        path = random_.choice(files)
        whole, other = path.read_bytes(), random_.choice([other for other in files if other != path])
        damage(path, number % 4, other, random_)
        with pytest.raises(CheckpointError, match=r"is damaged|is missing|not among the files|has no SHA256SUMS"):
            check_checksums(folder)
        path.write_bytes(whole)
    check_checksums(folder)


def test_a_file_that_nobody_vouches_for_is_named(folder: Path) -> None:
    (folder / "extra.json").touch()
    with pytest.raises(CheckpointError, match=r"extra\.json is not among the files"):
        check_checksums(folder)


def test_an_empty_list_vouches_for_nothing(folder: Path) -> None:
    (folder / SUMS_NAME).write_text("")
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        check_checksums(folder)


def test_a_list_without_its_end_vouches_for_nothing(folder: Path) -> None:
    sums = folder / SUMS_NAME
    sums.write_bytes(sums.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        check_checksums(folder)


def test_the_usual_command_checks_them_too(folder: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum command")
    subprocess.run(["sha256sum", "--quiet", "-c", SUMS_NAME], cwd=folder, check=True)
    (folder / "training.pt").write_bytes(b"")
    assert subprocess.run(["sha256sum", "--status", "-c", SUMS_NAME], cwd=folder, check=False).returncode == 1
