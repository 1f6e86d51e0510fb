"""Resuming: from whole checkpoints only, with the same configuration only, and what is said otherwise."""

from __future__ import annotations

import io
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from showo.data.faults import open_pool
from showo.data.sources.config import SourceConfig
from showo.errors import CheckpointError, OutputError, RunInUseError, UserError
from showo.lock import run_lock
from showo.train.checkpoint import _differences, checkpoints
from showo.train.checksums import write_checksums
from showo.train.config import ShowoTraining, load_config, to_yaml
from showo.train.image_tokenizer import train_tokenizer
from showo.train.loop import TrainLoop
from showo.train.pools import SourceFacts, changed_sources, facts_of, facts_to_json
from showo.train.saving import Saver
from tests.train.test_image_tokenizer import small_training


def train(pictures: Path, run: Path, *overrides: str, resume: bool = False) -> tuple[TrainLoop, str]:
    """The finished loop, and what was said."""
    out = io.StringIO()
    loop = train_tokenizer(small_training(pictures, *overrides), run, resume=resume, console=Console(file=out))
    return loop, out.getvalue()


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that has ended after step 6 of 6, with checkpoints of steps 3 and 6; its last weights."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, train(pictures, run)[0].model.state_dict()


@pytest.fixture
def run(trained: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(trained[0], tmp_path / "run")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_step(path: Path) -> None:
    shutil.copy(path.parent.parent / "step-000003" / path.name, path)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def whole_folder_of_another_step(path: Path) -> None:
    shutil.rmtree(path.parent)
    shutil.copytree(path.parent.parent / "step-000003", path.parent)


def vouched_for_and_empty(path: Path) -> None:
    path.write_bytes(b"")
    write_checksums(path.parents[1] if path.parent.name == "state" else path.parent)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("training.json", shorten, "training.json is damaged"),
        ("training.json", Path.unlink, "training.json is missing"),
        ("training.json", of_another_step, "training.json is damaged"),
        ("training.json", flip_a_bit, "training.json is damaged"),
        ("training.json", whole_folder_of_another_step, "training.json is of step 3"),
        ("training.json", vouched_for_and_empty, "training.json cannot be read"),
        ("state/__0_0.distcp", flip_a_bit, "__0_0.distcp is damaged"),
        ("state/.metadata", flip_a_bit, ".metadata is damaged"),
        ("state/.metadata", Path.unlink, ".metadata is missing"),
        ("state/.metadata", vouched_for_and_empty, ".metadata does not describe tensors"),
        ("SHA256SUMS", Path.unlink, "has no SHA256SUMS; if you trust it, run there: sha256sum"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    pictures: Path,
    trained: tuple[Path, dict[str, torch.Tensor]],
    run: Path,
    name: str,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    damage(run / "checkpoints" / "step-000006" / name)
    loop, said = train(pictures, run, resume=True)
    assert reason in said
    assert "set aside as step-000006.damaged, going on from step-000003" in said
    assert len(loop.history) == 3
    assert [path.name for path in checkpoints(run)] == ["step-000003", "step-000006"]
    assert (run / "checkpoints" / "step-000006.damaged").is_dir()
    assert (run / "checkpoints" / "latest").read_text() == "step-000006\n"  # which was done again
    for key, value in loop.model.state_dict().items():
        assert torch.equal(value, trained[1][key]), key


def test_no_whole_checkpoint_is_an_error_that_touches_nothing(pictures: Path, run: Path) -> None:
    for path in checkpoints(run):
        (path / "training.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole: .*step-000006.*; .*step-000003"):
        train(pictures, run, resume=True)
    assert len(checkpoints(run)) == 2


def test_differing_settings_are_named(pictures: Path, run: Path) -> None:
    with pytest.raises(CheckpointError) as info:
        train(pictures, run, "optimizer.lr=0.5", "batch=3", "optimizer.betas=[0.5,0.5]", "log_every=1", resume=True)
    message = str(info.value)
    for setting in (
        "batch 4 -> 3",
        "optimizer.lr 0.0015 -> 0.5",
        "optimizer.betas [0.9, 0.99] -> [0.5, 0.5]",
        "init_from",
    ):
        assert setting in message
    assert "log_every" not in message  # changes nothing that is computed
    names = ("l1_weight", "gradient_weight", "quantizer_weight", "entropy_weight", "augment", "seed", "batch")
    many = [f"{name}=1" for name in (*names, "optimizer.lr", "optimizer.eps")]
    with pytest.raises(CheckpointError, match="and 1 more;"):
        train(pictures, run, *many, resume=True)


# What may change when a run goes on: what is said, kept and waited for, and where data lie and who reads them.
MAY_CHANGE = {
    *("log_every", "validate_every", "validation_samples", "validation_prompts", "validate_ema", "checkpoint_every"),
    *("keep_checkpoints", "keep_every", "max_seconds", "step_timeout", "pause_timeout", "max_skipped_steps", "wandb"),
    *("broken_share", "workers", "prefetch", "data_root", "sources", "parallel", "fsdp"),
}


def test_whatever_changes_what_is_computed_keeps_a_run_from_going_on(pictures: Path) -> None:
    for config in (small_training(pictures), load_config(ShowoTraining, "tiny")):
        settings = yaml.safe_load(to_yaml(config))
        free = MAY_CHANGE & settings.keys()
        changed = dict.fromkeys(settings, "something else")
        assert _differences(yaml.safe_dump({**settings, **dict.fromkeys(free, "something else")}), config) == []
        named = {line.split()[0].split(".")[0] for line in _differences(yaml.safe_dump(changed), config)}
        assert named == settings.keys() - free


def test_an_option_that_is_younger_than_the_run_had_its_default(pictures: Path, run: Path) -> None:
    path = checkpoints(run)[-1] / "training.json"
    facts = json.loads(path.read_text())
    lines = facts["config"].splitlines()
    facts["config"] = "\n".join(line for line in lines if not line.startswith("recolour:"))
    path.write_text(json.dumps(facts))
    write_checksums(path.parent)
    assert train(pictures, run, resume=True)[0].step == 6
    with pytest.raises(CheckpointError, match=r"another configuration: recolour 0\.0 -> 0\.5;"):
        train(pictures, run, "recolour=0.5", resume=True)


@pytest.fixture
def own(pictures: Path, run: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, which that run has read by patterns, as a test may change it."""
    for path in checkpoints(run):
        facts = (path / "training.json").read_text().replace(str(pictures), str(tmp_path / "own"))
        (path / "training.json").write_text(facts)
        write_checksums(path)
    return shutil.copytree(pictures, tmp_path / "own")


def test_a_run_goes_on_with_the_samples_that_it_began_with(own: Path, run: Path) -> None:
    """Copies of its files are the same; one more, or another one of as many samples, is not."""
    assert train(own, run, resume=True)[0].step == 6
    refused = rf"^resume: .*step-000006 was made with other data: pictures: webdataset {own}.* had 16 samples and has "
    more = shutil.copy(own / "val-0000.tar", own / "train-0001.tar")
    with pytest.raises(CheckpointError, match=refused + "20; resume with the old files, or begin another run"):
        train(own, run, resume=True)
    more.unlink()
    (own / "train-0000.tar").rename(more)
    with pytest.raises(CheckpointError, match=refused + "16 of other files; "):
        train(own, run, resume=True)


def test_a_checkpoint_that_says_nothing_of_its_data_takes_what_is_there(own: Path, run: Path) -> None:
    """Such as one of an older version."""
    for path in checkpoints(run):
        facts = json.loads((path / "training.json").read_text())
        del facts["sources"]
        (path / "training.json").write_text(json.dumps(facts))
        write_checksums(path)
    shutil.copy(own / "val-0000.tar", own / "train-0001.tar")
    assert train(own, run, resume=True)[0].step == 6


def test_folders_of_classes_are_known_by_their_pictures(tmp_path: Path) -> None:
    picture = tmp_path / "objects" / "n1" / "a.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    (tmp_path / "names.txt").write_text("n1 one\n")
    config = SourceConfig("imagenet", [str(tmp_path / "objects")], class_names=str(tmp_path / "names.txt"))

    def facts() -> dict[str, list[SourceFacts]]:
        return facts_of({"t2i": open_pool([config], 0, tmp_path / "cache")})

    before = facts_to_json(facts())
    assert changed_sources(before, facts()) == []
    picture.rename(picture.with_name("b.png"))
    (changed,) = changed_sources(before, facts())
    assert changed.endswith("objects had 1 samples and has 1 of other files")


def test_so_many_checkpoints_are_kept_as_configured(pictures: Path, tmp_path: Path) -> None:
    train(pictures, tmp_path / "run", "checkpoint_every=1", "keep_checkpoints=3")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000004", "step-000005", "step-000006"]


def test_a_finished_run_says_so(pictures: Path, run: Path) -> None:
    before = sorted(run.rglob("*"))
    loop, said = train(pictures, run, resume=True)
    assert "run is finished: all 6 steps are done" in said
    assert loop.history == []
    assert sorted(run.rglob("*")) == before


def test_a_run_is_neither_overwritten_nor_made_up(pictures: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        train(pictures, run)
    with pytest.raises(UserError, match="other has no checkpoint"):
        train(pictures, tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()


def test_two_trainings_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"), pytest.raises(RunInUseError, match="run is in use by process"):
        train(pictures, tmp_path / "run")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", ["config.json", "state/__0_0.distcp", "state/.metadata", "SHA256SUMS"])
def test_a_full_disk_ends_with_the_last_whole_checkpoint(
    pictures: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    size = (run / "checkpoints" / "step-000006" / full).stat().st_size
    start = Saver.start

    def to_the_end(saver: Saver, step: int) -> Path:
        with largest_file(size - 1 if step == 2 else 2**30):
            path = start(saver, step)
            saver.wait()
            return path

    monkeypatch.setattr(Saver, "start", to_the_end)
    with pytest.raises(OutputError) as info:
        train(pictures, tmp_path / "full", "checkpoint_every=1", "log_every=99", "validate_every=99")
    folder = tmp_path / "full" / "checkpoints"
    assert f"step 2 could not be saved in {folder}: " in str(info.value)
    assert "too large" in str(info.value)
    assert str(info.value).endswith(f"the last whole checkpoint is {folder / 'step-000001'}")
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000001"]
    assert (folder / "latest").read_text() == "step-000001\n"


@pytest.mark.parametrize(
    ("capability", "precision", "slow"), [("AVX2", "bf16", True), ("AVX512", "bf16", False), ("AVX2", "fp32", False)]
)
def test_a_precision_that_this_processor_imitates_is_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, precision: str, slow: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    _, said = train(pictures, tmp_path / "run", "steps=1", f"precision={precision}")
    assert ("bf16 takes many times as long as precision=fp32" in said) == slow
