"""`showo make-world`: what it writes, a function of its options, and that training never sees what is held out."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from showo.data.sources import open_source, read_pictures
from showo.data.sources.config import SourceConfig
from showo.data.world.captions import caption
from showo.data.world.draw import draw_scene
from showo.data.world.objects import SIDE
from showo.data.world.sampling import CATEGORIES, draw_example
from showo.data.world.scene import Demand, Scene
from showo.data.world.world import FORMAT, Kind, World
from showo.pictures import open_image
from tests.showo.command import failure, run
from tests.showo.world.holdout_scan import names_held_out, shows_held_out

SCENES = 200
HELD_OUT = 40  # so many in each part that is not trained on, in place of 200, lest the tests are slow
EMOJI = ("--emoji", 0.1)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("showo.data.world.world.MIN_HELD_OUT", HELD_OUT)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worlds") / "world"
    for name in ("world.old", "world.tmp"):  # of the user, such as another world
        (path.parent / name).mkdir()
    assert run("make-world", path, "--scenes", SCENES, "--seed", 7, *EMOJI) == 0
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truths(folder: Path, split: str) -> Iterator[dict]:
    for path in sorted(folder.glob(f"scenes/{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    yield json.load(tar.extractfile(member))  # type: ignore[arg-type]


def test_several_processes_write_the_same_files(tmp_path: Path) -> None:
    assert run("make-world", tmp_path / "one", "--scenes", 30) == 0
    assert run("make-world", tmp_path / "many", "--scenes", 30, "--workers", 2) == 0
    one, many = files(tmp_path / "one"), files(tmp_path / "many")
    one_text, many_text = (each.pop("text/train-0000.parquet") for each in (one, many))
    assert one == many
    assert pq.read_table(io.BytesIO(one_text)).equals(pq.read_table(io.BytesIO(many_text)))


def test_scenes_are_pairs_whose_truth_is_beside_them(folder: Path) -> None:
    samples = read_pictures(f"{folder}/scenes/train-*.tar")
    found = list(truths(folder, "train"))
    assert len(samples) == len(found) == SCENES
    for sample, truth in zip(samples, found):
        scene = Scene.from_json(truth)
        assert Demand.from_json(truth["demand"]).is_met_by(scene)
        assert sample.picture.open().tobytes() == draw_scene(scene).tobytes()
    assert [len(list(truths(folder, split))) for split in ("val", "held-out")] == [HELD_OUT, HELD_OUT]


def test_training_contains_no_held_out_combination_and_the_held_out_part_nothing_else(folder: Path) -> None:
    world = World.load(folder)
    for split in ("train", "val", "held-out"):
        for sample, truth in zip(read_pictures(f"{folder}/scenes/{split}-*.tar"), truths(folder, split)):
            assert shows_held_out(Scene.from_json(truth), world.holdout) == (split == "held-out")
            assert names_held_out(sample.caption, world.holdout, once=True) == (split == "held-out"), sample.caption


def test_no_scene_of_validation_is_one_of_training(folder: Path) -> None:
    train, val = ({Scene.from_json(truth) for truth in truths(folder, split)} for split in ("train", "val"))
    assert not train & val


def test_objects_are_folders_of_wordnet_ids(folder: Path) -> None:
    world = World.load(folder)
    names = dict(line.split(" ", 1) for line in (folder / "objects" / "classes.txt").read_text().splitlines())
    assert len(names) == 64 + 16
    counts = {}
    for split in ("train", "val", "held-out"):
        pictures = list((folder / "objects" / split).glob("*/*.png"))
        counts[split] = len(pictures)
        for path in pictures:
            assert path.name.startswith(path.parent.name + "_")
            assert open_image(path).size == (SIDE, SIDE)
            assert names_held_out(names[path.parent.name].split(",")[0], world.holdout) == (split == "held-out")
    assert counts == {"train": SCENES // 4, "val": HELD_OUT, "held-out": HELD_OUT}


def test_prompts_say_what_they_demand(folder: Path) -> None:
    world = World.load(folder)
    for name in ("seen", "held-out"):
        prompts = json.loads((folder / "prompts" / f"{name}.json").read_text())
        categories = [category for category in CATEGORIES if name == "seen" or category != "single"]
        assert [prompt["category"] for prompt in prompts] == categories * 100
        for prompt in prompts:
            assert world.holdout.demand_is_seen(Demand.from_json(prompt["demand"])) == (name == "seen")
            assert names_held_out(prompt["prompt"], world.holdout, once=True) == (name == "held-out")


def test_every_layout_is_read_by_its_source(folder: Path, tmp_path: Path) -> None:
    def source(layout: str, *files: str, **options: str) -> list[Any]:
        config = SourceConfig(layout, [f"{folder}/{file}" for file in files], **options)
        opened = open_source(config, tmp_path / "cache")
        return [opened[i] for i in range(len(opened))]

    for sample in source("webdataset", "scenes/train-*.tar")[:20]:
        assert sample.picture.open().size == (SIDE, SIDE)
    objects = source("imagenet", "objects/train", class_names=f"{folder}/objects/classes.txt")
    assert {len(sample.caption.split()) for sample in objects} == {1, 2}  # "rocket", "red star"
    questions = source("llava", "questions/train.json")
    assert len(questions) == SCENES
    entries = json.loads((folder / "questions" / "train.json").read_text())
    for sample, entry in zip(questions, entries):
        assert sample.key == entry["id"]
        assert len(sample.turns) == len(entry["kinds"])
        assert sample.pictures[0].open().tobytes() == draw_scene(Scene.from_json(entry)).tobytes()
    sequences = source("sequences", "steps/train.jsonl")
    lines = (folder / "steps" / "train.jsonl").read_text().splitlines()
    assert len(sequences) == len(lines) == SCENES // 2
    for sample, line in zip(sequences, lines):
        for frame, truth in zip(sample.frames, json.loads(line)["frames"]):
            assert frame.picture.open().tobytes() == draw_scene(Scene.from_json(truth)).tobytes()
            assert Demand.from_json(truth["demand"]).is_met_by(Scene.from_json(truth))
    assert len(source("parquet_text", "text/train-*.parquet")) == SCENES


def test_the_same_seed_gives_the_same_bytes_and_more_scenes_only_more(folder: Path, tmp_path: Path) -> None:
    assert run("make-world", tmp_path / "longer", "--scenes", SCENES + 60, "--seed", 7 + 2**64, *EMOJI) == 0
    before, longer = files(folder), files(tmp_path / "longer")
    for name, content in before.items():
        if name.endswith(".parquet"):
            texts = [pq.read_table(root / name)["text"].to_pylist() for root in (folder, tmp_path / "longer")]
            assert texts[0] == texts[1][: len(texts[0])]
        elif name != "world.json":
            assert longer[name].startswith(content.rstrip(b"\0]\n")), name  # how a tar and a list end
    assert len(longer) > len(before)


def test_the_world_of_a_seed_is_what_it_was() -> None:
    """Raise FORMAT of the package when it is not: worlds that are there already are then told from new ones."""
    world, known = World(0, 1000), hashlib.sha256()
    for number in range(50):
        generator = world.generator(Kind.SCENE, "train", number)
        example = draw_example(generator, world.holdout, "train")
        known.update(repr((example, caption(example.demand, generator))).encode())
    assert (FORMAT, known.hexdigest()[:16]) == (1, "76f09efa88b36f91")


def test_a_folder_is_never_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    capsys.readouterr()
    assert run("make-world", folder, "--scenes", SCENES, "--seed", 7, *EMOJI) == 0
    assert "is there already" in capsys.readouterr().out
    message = failure(capsys, "make-world", folder, "--scenes", SCENES + 1, "--seed", 7, *EMOJI)
    assert f"holds a world of --seed 7 --scenes {SCENES}" in message
    assert files(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["world", "world.old", "world.tmp"]
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
        (("--emoji", 1.5), "--emoji must be 0 to 0.5, got 1.5"),
        (("--emoji", "nan"), "--emoji must be 0 to 0.5, got nan"),
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


def test_emoji_to_train_on_are_the_bundled_ones_whose_names_are_not_held_out(folder: Path) -> None:
    holdout = World.load(folder).holdout
    bundled = read_pictures("bundled:emoji/train-*.tar")
    kept = [sample for sample in bundled if not names_held_out(sample.caption, holdout)]
    assert 0 < len(bundled) - len(kept) < 10
    written = read_pictures(f"{folder}/emoji/train-*.tar")
    assert [(s.key, s.picture.data, s.caption) for s in written] == [(s.key, s.picture.data, s.caption) for s in kept]
