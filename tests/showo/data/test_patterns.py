"""Which files a pattern means, and paths that must not leave their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from showo.data.patterns import Folder, expand_braces, find_paths
from showo.data.tar import write_tar
from showo.errors import DataError, SampleError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{0008..0010}.tar", ["a-0008.tar", "a-0009.tar", "a-0010.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{x,y}-{1..2}", ["x-1", "x-2", "y-1", "y-2"]),
        ("a{}.tar", ["a{}.tar"]),
        ("a{1}.tar", ["a{1}.tar"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_braces_stand_for_what_they_do_in_a_shell(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..999}{0..999}", "{9..0}"])
def test_braces_that_stand_for_too_many_or_nothing(pattern: str) -> None:
    with pytest.raises(DataError, match=r"stands for more than|is empty"):
        expand_braces(pattern)


def test_every_shard_of_a_range_must_be_there(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write_tar(tmp_path / f"a-{number:02}.tar", [(f"{number}.txt", b"words")])
    assert find_paths([f"{tmp_path}/a-{{00..01}}.tar"]) == [tmp_path / "a-00.tar", tmp_path / "a-01.tar"]
    with pytest.raises(DataError, match=r"no file matches '.*a-02\.tar', which .*\{00\.\.03\}"):
        find_paths([f"{tmp_path}/a-{{00..03}}.tar"])


def test_a_name_with_the_characters_of_a_pattern_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a[1].tar", [("x.txt", b"words")])
    assert find_paths([str(tmp_path / "a[1].tar")]) == [tmp_path / "a[1].tar"]


def test_missing_files_are_named() -> None:
    with pytest.raises(DataError, match="nothing-here"):
        find_paths(["nothing-here/*.tar"])


def test_a_folder_gives_no_file_outside_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in2").mkdir()
    (tmp_path / "secret.png").touch()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "in2")
    (tmp_path / "in" / "fine.png").symlink_to("a.png")
    folder = Folder(tmp_path / "in")
    for name in ("a.png", "b/c.png", "fine.png", "./a.png"):
        assert folder.file(name, "x.json") == tmp_path / "in" / name
    for name in ("../../etc/passwd", "b/../../secret.png", "/etc/passwd", "link.png", "folder/a.png"):
        with pytest.raises(SampleError, match=r"x\.json: .*") as error:
            folder.file(name, "x.json")
        assert error.value.reason == "path outside its folder"
        assert name in str(error.value)
    for strange in ("", None, 3, "a\0b", ["a.png"]):
        with pytest.raises(SampleError, match=r"x\.json: expected the path of a picture"):
            folder.file(strange, "x.json")
    with pytest.raises(DataError, match="no such folder"):
        Folder(tmp_path / "absent")
