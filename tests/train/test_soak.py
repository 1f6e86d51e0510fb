"""Kills at random moments change nothing: the run ends with the same bits, and has logged every step once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from showo.files import atomic_write_text
from showo.train.checkpoint import checkpoints
from showo.train.config import to_yaml
from tests.train.conftest import saved_tensors, small_training
from tests.train.soak import KILLS, Soak, losses

SMALL = [
    "parallel=ddp", "workers=1", "checkpoint_every=2", "log_every=1", "validate_every=1000", "validation_samples=1",
    "validation_prompts=[]", "model.num_layers=1", "ema_decay=0.9",
]  # fmt: skip


def state(run: Path) -> dict[str, bytes]:
    """All bits of the last checkpoint's tensors: weights, their average, the optimizer's state."""
    return {name: value.numpy().tobytes() for name, value in saved_tensors(checkpoints(run)[-1]).items()}


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(30, marks=pytest.mark.soak)])
def test_kills_change_nothing(folders: dict[str, Path], tmp_path: Path, count: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown where the test fails
    draw = random.Random(seed)
    config = tmp_path / "small.yaml"
    atomic_write_text(config, to_yaml(small_training(folders, *SMALL, f"steps={4 * count + 6}")))
    kills = [kill for _ in range(0, count, len(KILLS)) for kill in draw.sample(KILLS, len(KILLS))][:count]
    Soak(config, tmp_path / "whole", draw).train([])
    killed = Soak(config, tmp_path / "killed", draw)
    killed.train(kills)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole"), killed.said
    assert state(tmp_path / "killed") == state(tmp_path / "whole"), killed.said
