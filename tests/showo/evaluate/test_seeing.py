"""`showo evaluate world` of a model that sees pictures through a vision tower, both small and random."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from showo.engine.pipeline import ShowoPipeline
from showo.engine.pipeline_file import PIPELINE_NAME, PipelineFile
from showo.engine.sampling import Sampling
from showo.model.contrastive import ContrastiveTowers, TowersConfig
from showo.model.transformer import Showo
from tests.showo.command import failure, run

pytest.importorskip("transformers")
SIZES = TowersConfig(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, text_layers=1)


@pytest.fixture(scope="module")
def seeing(small_pipe: ShowoPipeline, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the trainer writes it, of a tower with 16 features of 32 numbers."""
    folder = tmp_path_factory.mktemp("seeing")
    torch.manual_seed(1)
    Showo(replace(small_pipe.model.config, w_clip_vit=True, clip_width=32)).save_pretrained(folder / "showo")
    small_pipe.text_tokenizer.save(folder / "showo")
    for seed, name in enumerate(("tower", "other")):
        torch.manual_seed(seed)
        ContrastiveTowers(SIZES, 32, 50).save_pretrained(folder / name)
    image_tokenizer = str(small_checkpoint / "image_tokenizer")
    PipelineFile(image_tokenizer, Sampling(steps=2), str(folder / "tower")).write(folder / "showo")
    return folder


def test_all_parts_are_judged(
    seeing: Path, world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it draws does not hang on the tower, and what it says of pictures does."""
    cases: list[Any] = []
    for more in ([], ["--vision-tower", seeing / "other"]):
        report = tmp_path / f"report{len(cases)}.json"
        options = ["--world", world_folder, "-m", seeing / "showo", "--count", 5, "--json", report, *more]
        assert run("evaluate", "world", *options) == 0
        cases.append(json.loads(report.read_text())["cases"])
    assert capsys.readouterr().err == ""  # no bar of transformers
    one, other = cases
    assert {len(columns["seen"]) for columns in one.values()} == {5}
    same = {part for part in one if one[part] == other[part]}
    assert same == {"text to image", "tokenizer", "steps"}
    assert {*one} - same == {"questions", "descriptions"}


def test_what_cannot_be_seen_ends_it_before_any_work(
    seeing: Path,
    world_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ShowoPipeline, "generate", None)
    shutil.copytree(seeing / "showo", tmp_path / "showo")
    named = json.loads((tmp_path / "showo" / PIPELINE_NAME).read_text())
    (tmp_path / "showo" / PIPELINE_NAME).write_text(json.dumps({**named, "vision_tower": str(tmp_path / "gone")}))
    command = ["evaluate", "world", "--world", world_folder, "-m", tmp_path / "showo"]
    assert "vision_tower: no checkpoint folder at" in failure(capsys, *command)
    ContrastiveTowers(SIZES, 224, 50).save_pretrained(tmp_path / "large")
    command += ["--vision-tower", tmp_path / "large"]
    assert "picture and question take" in failure(capsys, *command)
