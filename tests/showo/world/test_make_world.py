"""`showo make-world`: what it writes, a function of its options, and that training never sees what is held out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from showo.data.shards import read_files, read_pairs
from showo.data.world.captions import plural
from showo.data.world.draw import draw_scene
from showo.data.world.objects import SHAPES, SIDE
from showo.data.world.sampling import CATEGORIES
from showo.data.world.scene import Demand, Scene
from showo.data.world.world import World
from showo.pictures import open_image
from tests.showo.command import failure, run

SCENES = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worlds") / "world"
    assert run("make-world", path, "--scenes", SCENES, "--seed", 7) == 0
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truths(folder: Path, split: str) -> Iterator[dict]:
    for path in sorted(folder.glob(f"scenes/{split}-*.tar")):
        for _, extension, data in read_files(path):
            if extension == "json":
                yield json.loads(data)


def names_held_out(text: str, world: World) -> bool:
    """Whether a caption names a held-out combination; found word by word, in another way than the package does it."""
    words = re.findall("[a-z]+", text.lower())
    singular = {plural(shape): shape for shape in SHAPES}
    shapes = {singular.get(word, word) for word in words} & set(SHAPES)
    pairs = {frozenset(pair) for pair in combinations(shapes, 2)}
    coloured = {(shape, colour) for colour, shape in zip(words, (singular.get(word, word) for word in words[1:]))}
    counts = {"two": 2, "three": 3, "four": 4}
    counted = {
        (counts[word], singular[follower])
        for i, word in enumerate(words)
        for follower in words[i + 1 : i + 3]
        if word in counts and follower in singular
    }
    counted |= {(words.count(shape), shape) for shape in SHAPES}  # "a red star and a blue star"
    held_out = world.holdout
    return bool(held_out.pairs & pairs or held_out.coloured & coloured or held_out.counted & counted)


def test_scenes_are_pairs_whose_truth_is_beside_them(folder: Path) -> None:
    samples = read_pairs([f"{folder}/scenes/train-*.tar"])
    found = list(truths(folder, "train"))
    assert len(samples) == len(found) == SCENES
    for sample, truth in zip(samples, found):
        scene = Scene.from_json(truth)
        assert Demand.from_json(truth["demand"]).is_met_by(scene)
        assert open_image(sample.image).tobytes() == draw_scene(scene).tobytes()
    assert [len(list(truths(folder, split))) for split in ("val", "held-out")] == [200, 200]


def test_training_contains_no_held_out_combination_and_the_held_out_part_nothing_else(folder: Path) -> None:
    world = World.load(folder)
    for split in ("train", "val", "held-out"):
        for sample, truth in zip(read_pairs([f"{folder}/scenes/{split}-*.tar"]), truths(folder, split)):
            assert world.holdout.scene_is_seen(Scene.from_json(truth)) == (split != "held-out")
            assert names_held_out(sample.caption, world) == (split == "held-out"), sample.caption


def test_no_scene_of_validation_is_one_of_training(folder: Path) -> None:
    train, val = ({Scene.from_json(truth) for truth in truths(folder, split)} for split in ("train", "val"))
    assert not train & val


def test_objects_are_folders_of_wordnet_ids(folder: Path) -> None:
    world = World.load(folder)
    names = dict(line.split(" ", 1) for line in (folder / "objects" / "classes.txt").read_text().splitlines())
    assert len(names) == 64
    counts = {}
    for split in ("train", "val", "held-out"):
        pictures = list((folder / "objects" / split).glob("*/*.png"))
        counts[split] = len(pictures)
        for path in pictures:
            assert path.name.startswith(path.parent.name + "_")
            assert open_image(path).size == (SIDE, SIDE)
            assert names_held_out(names[path.parent.name].split(",")[0], world) == (split == "held-out")
    assert counts == {"train": SCENES // 4, "val": 200, "held-out": 200}


def test_prompts_say_what_they_demand(folder: Path) -> None:
    world = World.load(folder)
    for name in ("seen", "held-out"):
        prompts = json.loads((folder / "prompts" / f"{name}.json").read_text())
        categories = [category for category in CATEGORIES if name == "seen" or category != "single"]
        assert [prompt["category"] for prompt in prompts] == categories * 100
        for prompt in prompts:
            assert world.holdout.demand_is_seen(Demand.from_json(prompt["demand"])) == (name == "seen")
            assert names_held_out(prompt["prompt"], world) == (name == "held-out")


def test_the_same_seed_gives_the_same_bytes_and_more_scenes_only_more(folder: Path, tmp_path: Path) -> None:
    assert run("make-world", tmp_path / "longer", "--scenes", SCENES + 60, "--seed", 7 + 2**64) == 0
    before, longer = files(folder), files(tmp_path / "longer")
    for name, content in before.items():
        if name.endswith(".tar"):
            assert longer[name].startswith(content.rstrip(b"\0")), name  # a tar ends in zeros
        elif name != "world.json":
            assert longer[name] == content, name
    assert len(longer) > len(before)


def test_emoji_come_by_option(tmp_path: Path) -> None:
    assert run("make-world", tmp_path / "world", "--scenes", 20, "--emoji", 0.5) == 0
    found = [thing for truth in truths(tmp_path / "world", "train") for thing in truth["objects"]]
    assert 0.3 < sum(thing["colour"] is None for thing in found) / len(found) < 0.7
    assert "n00000065 anchor\n" in (tmp_path / "world" / "objects" / "classes.txt").read_text()


def test_a_folder_is_never_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    capsys.readouterr()
    assert run("make-world", folder, "--scenes", SCENES, "--seed", 7) == 0
    assert "is there already" in capsys.readouterr().out
    message = failure(capsys, "make-world", folder, "--scenes", SCENES + 1, "--seed", 7)
    assert f"holds a world of --seed 7 --scenes {SCENES}" in message
    assert files(folder) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in failure(capsys, "make-world", tmp_path)
    assert "expected a folder" in failure(capsys, "make-world", tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "world.json").write_text('{"seed": 1}')
    assert "cannot be read as a world" in failure(capsys, "make-world", tmp_path / "damaged")
    (tmp_path / "damaged" / "world.json").write_text(json.dumps({**World(7, 5).to_json(), "format": 0}))
    assert "another version" in failure(capsys, "make-world", tmp_path / "damaged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scenes", 0), "--scenes must be 1 to 1000000, got 0"),
        (("--scenes", 1_000_001), "got 1000001"),
        (("--emoji", 1.5), "--emoji must be 0 to 1, got 1.5"),
        (("--emoji", "nan"), "--emoji must be 0 to 1, got nan"),
    ],
)
def test_numbers_out_of_range(
    options: tuple[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, "make-world", tmp_path / "world", *options)


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("showo.data.world.write.encode_png", full)
    message = failure(capsys, "make-world", tmp_path / "world", "--scenes", 5)
    assert "No space left on device" in message
    assert list(tmp_path.iterdir()) == []
