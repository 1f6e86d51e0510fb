"""Where a scan finds the samples of damaged tars: what lies before the damage is used, the rest is counted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from showo.data.sources.tar_samples import TarSamples
from showo.data.tar import BLOCK, walk_tar, write_tar
from showo.data.tar_scan import SOUND, scan_pairs, scan_texts
from showo.errors import SampleError

COUNT = 12


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    files = [(f"{n}.{kind}", bytes(100 * n + 1)) for n in range(COUNT) for kind in ("png", "txt", "json")]
    write_tar(tmp_path / "a.tar", files)
    return tmp_path / "a.tar"


def broken_from(path: Path) -> tuple[int, int]:
    """How many samples are sound, all of which come first, and how many are broken."""
    damage = [record[2] for record in scan_pairs(path).records.tolist()]
    sound = damage.count(SOUND)
    assert all(byte == SOUND for byte in damage[:sound])
    assert len({*damage[sound:]}) <= 1  # one damage is named
    return sound, len(damage) - sound


def test_a_damaged_header_breaks_its_sample_and_those_behind(tar: Path) -> None:
    data, chance = tar.read_bytes(), random.Random(1)
    with tar.open("rb") as file:
        members = list(walk_tar(file, "x"))
    for number, member in enumerate(members):
        if number < 1:
            continue  # without the first header, nothing says that this is a tar
        at = member.start + chance.choice([0, 40, 130, 150, 258, 300])
        tar.write_bytes(data[:at] + b"?" + data[at + 1 :])
        # A sample of picture and text is whole; the .json, the last file, could be the beginning of another sample.
        first = number // 3 + (number % 3 == 2)
        assert broken_from(tar) == (first, COUNT - first if number % 3 < 2 else COUNT - first + 1), member.name


def test_a_cut_tar_has_one_broken_sample(tar: Path, tmp_path: Path) -> None:
    data, chance = tar.read_bytes(), random.Random(2)
    with tar.open("rb") as file:
        members = list(walk_tar(file, "x"))
    whole_at = [members[3 * n + 1].end for n in range(COUNT)]  # picture and text are there
    for _ in range(30):
        cut = chance.randrange(BLOCK, members[-1].end + BLOCK)
        tar.write_bytes(data[:cut])
        sound = sum(end <= cut for end in whole_at)
        assert broken_from(tar) == (sound, 1), cut
        samples = TarSamples([tar], scan_pairs, tmp_path / "cache")
        for number in range(sound):
            _, key, files = samples.read(number, ("png", "txt"))
            assert (key, [len(data) for data in files.values()]) == (str(number), [100 * number + 1] * 2)
        with pytest.raises(SampleError, match=r"a\.tar: damaged at byte \d+; the sample from byte \d+ on is not used"):
            samples.read(sound, ("png", "txt"))


def test_damage_after_damage_is_counted_too(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    with tar.open("rb") as file:
        members = list(walk_tar(file, "x"))
    for number in (3 * 4, 3 * 8):  # the pictures of samples 4 and 8
        data[members[number].start] ^= 1
    tar.write_bytes(data)
    sound, broken = broken_from(tar)
    assert sound == 4
    assert broken >= COUNT - 5


def test_every_text_is_a_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.txt", b"1"), ("x.png", b"2"), ("._y.txt", b"3"), ("d/y.txt", b"4")])
    records = scan_texts(tmp_path / "a.tar").records
    assert len(records) == 2
    assert (records[:, 2] == SOUND).all()
