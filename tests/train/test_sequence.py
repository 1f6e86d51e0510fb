"""All tiny stages, one after the other on a small world: each takes the weights of the one before, and resumes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from showo.data.world.world import World
from showo.data.world.write import write_world
from showo.files import atomic_write_text
from showo.model.weight_files import STATE_NAME
from showo.model.weights import folded_state_dict
from showo.train import loop as loops
from showo.train.checkpoint import checkpoints, step_name
from showo.train.config import LoopConfig, ShowoTraining, TokenizerTraining, VisionTowerTraining, load_config, to_yaml
from showo.train.image_tokenizer import tokenizer_loop
from showo.train.showo import showo_loop
from showo.train.vision_tower import vision_tower_loop
from tests.train.conftest import same_tensors, saved_tensors, saved_weights

ROOT = Path(__file__).parents[2]
# What makes the loop of a kind of training, and sizes of a small model.
KINDS: dict[type[LoopConfig], tuple[Callable[..., loops.TrainLoop[Any]], str]] = {
    TokenizerTraining: (
        tokenizer_loop,
        "bits=6 channels=8 norm_groups=4 encoder_blocks=[1,1,1,1] decoder_blocks=[1,1,1,1] "
        "encoder_multipliers=[1,1,1,2] decoder_multipliers=[1,1,1,2]",
    ),
    VisionTowerTraining: (
        vision_tower_loop,
        "hidden_size=32 num_layers=2 num_heads=2 intermediate_size=32 text_layers=1",
    ),
    ShowoTraining: (
        showo_loop,
        "hidden_size=32 num_layers=2 num_heads=1 intermediate_size=64 num_vq_tokens=16 codebook_size=64 clip_width=32",
    ),
}
NAMES: dict[type[LoopConfig], str] = {
    TokenizerTraining: "tiny-image-tokenizer tiny-image-tokenizer-world tiny-image-tokenizer-decoder",
    VisionTowerTraining: "tiny-vision-tower",
    ShowoTraining: "tiny-stage1 tiny-stage2 tiny-stage3 tiny-tuning1 tiny-tuning2 tiny-mixed tiny-clip-vit",
}
STAGES = {name: kind for kind, names in NAMES.items() for name in names.split()}
STEPS, EVERY = 5, 2
COMMON = [
    *(f"steps={STEPS}", f"checkpoint_every={EVERY}", "keep_checkpoints=9", "validate_every=9", "validation_samples=4"),
    *("resolution=32", "optimizer.warmup_steps=1", "ema_decay=0.9"),
]
RUNS = ("init_from", "image_tokenizer", "vision_tower")  # keys whose value may be the run of another stage


def runs_before(config: LoopConfig) -> dict[str, str]:
    """What a configuration says about the runs that it builds on."""
    return {key: value for key, value in vars(config).items() if key in RUNS and value.startswith("runs/")}


@dataclass(frozen=True)
class Recipe:
    """A folder with a world, and with a run for every stage that has been trained, by the name of the stage."""

    folder: Path

    def config(self, stage: str) -> LoopConfig:
        """The bundled configuration of a stage, made small. What it builds on is trained first."""
        kind = STAGES[stage]
        bundled = load_config(kind, stage)
        own = [*COMMON, *(f"model.{size}" for size in KINDS[kind][1].split()), f"data_root={self.folder}/world"]
        for key, run in runs_before(bundled).items():
            name = Path(run).name
            own.append(f"{key}={self.trained(name if name in STAGES else f'tiny-{name}')}")
        if isinstance(bundled, ShowoTraining):
            own += ["encode_first=0", "validation_prompts=[a red star]", "text_tokenizer=bundled:tiny/showo"]
            own += ["accumulate=1", *(f"{stream}.batch=3" for stream in bundled.streams)]
        else:
            own.append("batch=4")
        return load_config(kind, stage, own)

    def trained(self, stage: str) -> Path:
        """The run of a stage, trained without interruption."""
        run = self.folder / stage
        if not run.exists():
            train(self.config(stage), run)
        return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    write_world(World(seed=5, scenes=20), folder / "world", lambda: None)
    return Recipe(folder)


def build(config: LoopConfig, run: Path) -> loops.TrainLoop[Any]:
    return KINDS[type(config)][0](config, run, Console(quiet=True))


def train(config: LoopConfig, run: Path, resume: bool = False) -> loops.TrainLoop[Any]:
    return loops.train(lambda: build(config, run), run, resume=resume)


class Ended(Exception):
    """In place of the end of the process."""


def raise_ended() -> None:
    raise Ended


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_this_process_when_saved(run: Path, step: int) -> None:
    """Checkpoints are written beside the steps."""
    while not (run / "checkpoints" / step_name(step // EVERY * EVERY)).exists():
        time.sleep(0.01)
    kill_this_process()


def train_until(step: int, end: Callable[[], None], config: LoopConfig, run: Path) -> None:
    """Trains, and calls `end` in the step of that number (from 0 on), when the weights have changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "train_step", training_step_that_ends(step, end))
        train(config, run)


def training_step_that_ends(step: int, end: Callable[[], None]) -> Callable[..., Any]:
    train_step = loops.train_step

    def step_and_end(parallel: Any, optimizer: Any, loss: Any, rows: Any, counts: Any, number: int, *more: Any) -> Any:
        figures = train_step(parallel, optimizer, loss, rows, counts, number, *more)
        if number == step:
            end()
        return figures

    return step_and_end


def some_step(stage: str) -> int:
    """A random step after a checkpoint, another one for every stage."""
    return random.Random(stage).randrange(EVERY, STEPS)


def resume(config: LoopConfig, run: Path, step: int) -> None:
    """Goes on from the last checkpoint before the end in `step`."""
    saved = step // EVERY * EVERY
    assert checkpoints(run)[-1].name == f"step-{saved:06d}"
    assert len(train(config, run, resume=True).history) == STEPS - saved


def assert_same_runs(a: Path, b: Path) -> None:
    """Of every checkpoint all tensors, and all that lies beside them."""
    for one, other in zip(checkpoints(a), checkpoints(b), strict=True):
        files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
        assert files == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
        for file in files - {Path("SHA256SUMS")}:
            if file.parent.name != STATE_NAME:
                assert (one / file).read_bytes() == (other / file).read_bytes(), one / file
        found = saved_tensors(one)
        assert {name.split(".")[0] for name in found} == {"weights", "average", "optimizer"}
        assert same_tensors(found, saved_tensors(other))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_ended_anywhere_goes_on_bit_for_bit(recipe: Recipe, tmp_path: Path, stage: str) -> None:
    config, step = recipe.config(stage), some_step(stage)
    with pytest.raises(Ended):
        train_until(step, raise_ended, config, tmp_path / "run")
    resume(config, tmp_path / "run", step)
    assert_same_runs(recipe.trained(stage), tmp_path / "run")


def test_a_stage_that_was_killed_goes_on_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    stage, run = "tiny-stage2", tmp_path / "run"
    config, step = recipe.config(stage), some_step("killed")
    atomic_write_text(tmp_path / "config.yaml", to_yaml(config))
    script = f"""
from pathlib import Path
from showo.train.config import ShowoTraining, load_config
from tests.train.test_sequence import kill_this_process_when_saved, train_until
config = load_config(ShowoTraining, {str(tmp_path / "config.yaml")!r})
run = Path({str(run)!r})
train_until({step}, lambda: kill_this_process_when_saved(run, {step}), config, run)
"""
    # The kernels' results do not depend on how many threads compute them; those of torch's matrix products may.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (run / "lock").exists()
    resume(config, run, step)
    assert_same_runs(recipe.trained(stage), run)


STARTING_FROM_ANOTHER = [name for name, kind in STAGES.items() if "init_from" in runs_before(load_config(kind, name))]


@pytest.mark.parametrize("stage", STARTING_FROM_ANOTHER)
def test_a_stage_takes_weights_and_no_optimizer(recipe: Recipe, tmp_path: Path, stage: str) -> None:
    config: Any = recipe.config(stage)
    loop = build(config, tmp_path)
    before = saved_weights(checkpoints(Path(config.init_from))[-1])
    found = {name: value for name, value in folded_state_dict(loop.model).items() if "mm_projector" not in name}
    assert same_tensors(before, found)
    assert not loop.optimizer.state
    state = saved_tensors(checkpoints(recipe.trained(stage))[-1])
    assert {int(value) for name, value in state.items() if name.startswith("optimizer.step.")} == {STEPS}
