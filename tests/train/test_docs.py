"""docs/training.md leads to a trained and judged model: all its commands run, and those that take hours are right."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from showo.gpus import GPUS
from showo.train.checkpoint import checkpoints
from showo.train.config import ShowoTraining, TokenizerTraining, VisionTowerTraining, load_config
from tests.showo.command import run
from tests.train.conftest import saved_weights
from tests.train.torchrun import torchrun

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
KINDS = {"train": ShowoTraining, "train-tokenizer": TokenizerTraining, "train-vision-tower": VisionTowerTraining}


def weights(run: str) -> dict[str, Tensor]:
    return saved_weights(checkpoints(Path(run))[-1])


@pytest.mark.slow
def test_the_commands_lead_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (small, *_) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "small.yaml").write_text(small)
    printed = {}
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        if name == "torchrun":
            assert arguments[:3] == ["--standalone", "--nproc-per-node", "2"]
            shared = torchrun(2, *arguments[3:])
            assert shared.returncode == 0, shared.stderr
            continue
        assert name == "showo"
        assert run(*arguments) == 0, command
        printed[command] = capsys.readouterr()
    assert len(COMMANDS) > 8
    for sheet in ("scenes.png", "objects.png", "drawn.png", "judged.png"):
        with Image.open(sheet) as image:
            assert image.width > 64
    assert [path.name for path in checkpoints(Path("runs/first"))] == ["step-000003", "step-000006"]
    assert shared.stderr.count("step 6/6 ") == 1  # rank 0 alone speaks
    assert weights("runs/shared").keys() == weights("runs/first").keys()
    one, two = (torch.cat([w.flatten() for w in weights(run).values()]) for run in ("runs/first", "runs/shared"))
    assert (two - one).norm() < 0.01 * one.norm()  # in bf16; that ranks compute the same is tested in test_parallel
    (resumed,) = (said.err for command, said in printed.items() if "--resume" in command)
    assert "runs/first is finished: all 6 steps are done" in resumed
    (second,) = (said.err for command, said in printed.items() if "init_from" in command)
    assert "init_from: runs/first/checkpoints/step-000006" in second.replace("\n", "")


def test_commands_that_take_hours_have_configurations() -> None:
    found = re.findall(r"`showo (train[a-z-]*) ([^`]+)`", PAGE)
    assert {name for name, _ in found} == KINDS.keys()
    for name, rest in found:
        words = shlex.split(rest)
        options = dict(pairwise(words))
        assert {word for word in words if word.startswith("--")} <= {"--config", "--run", "--dry-run"}, rest
        if "--config" in options:
            load_config(KINDS[name], options["--config"], [word for word in words if "=" in word])


def test_gpus_are_listed() -> None:
    (listed,) = re.findall(r"of the kind `--gpu` \((.*?)\)", PAGE)
    assert listed == ", ".join(f"`{name}`" for name in GPUS)
