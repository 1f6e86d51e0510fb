"""The whole recipe from nothing, of tiny sizes: it is killed in the middle of its commands, and goes on each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from showo import recipe
from showo.data import make_text_tokenizer
from showo.data.world import write
from showo.data.world.world import World
from showo.evaluate.world import evaluate
from showo.train import loop as loops
from showo.train.config import load_config
from tests.showo.command import run
from tests.train.test_sequence import assert_same_runs, kill_this_process, train, training_step_that_ends

STEPS = 4
TOKENIZER = (
    "batch=4 model.bits=6 model.channels=8 model.norm_groups=4 model.encoder_blocks=[1,1,1,1] "
    "model.decoder_blocks=[1,1,1,1] model.encoder_multipliers=[1,1,1,2] model.decoder_multipliers=[1,1,1,2]"
)
SHOWO = (
    "model.hidden_size=32 model.num_layers=2 model.num_heads=1 model.intermediate_size=64 model.codebook_size=64 "
    "accumulate=1 encode_first=0 sampling.steps=2 t2i.batch=2 lm.batch=2"
)
SMALL = {
    "*": f"steps={STEPS} checkpoint_every=2 keep_checkpoints=9 validate_every=9 validation_samples=2 "
    "optimizer.warmup_steps=1 ema_decay=0.9",
    "tiny-image-tokenizer*": TOKENIZER,
    "tiny-[!iv]*": SHOWO,  # all but image tokenizers and vision tower
    "tiny-[!civ]*": "mmu.batch=2",
    "tiny-mixed": "lvg.batch=2",
    "tiny-clip-vit": "mmu_vit.batch=2 model.clip_width=32",
    "tiny-vision-tower": "batch=4 model.hidden_size=32 model.num_layers=2 model.num_heads=2 "
    "model.intermediate_size=32 model.text_layers=1",
}
ARGUMENTS = [
    *("--scenes", "20", "--cases", "2"),
    *(f"{fits}:{key}" for fits, keys in SMALL.items() for key in keys.split()),
]
KILLED = ("make-world", "tiny-image-tokenizer-world", "tiny-stage2", "tiny-mixed", "evaluate")


def name_of(command: list[str]) -> str:
    """A command's configuration, or what else it does."""
    return command[command.index("--config") + 1] if "--config" in command else command[2]


def run_and_die(command: list[str]) -> None:
    """Runs `showo` as a command of the recipe does, in a process that is killed in the middle of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_write_prompts", lambda *arguments: kill_this_process())
        patch.setattr(evaluate, "Report", lambda *arguments: kill_this_process())
        patch.setattr(loops, "train_step", training_step_that_ends(STEPS - 1, kill_this_process))
        from showo import cli

        cli.main(command[2:])


class Killer:
    """In place of subprocess.run in the recipe: each command of KILLED is killed the first time.

    What is not killed runs in this process, which has loaded torch already.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        name = name_of(command[1:])
        self.names.append(name)
        if name in KILLED and self.names.count(name) == 1:
            return subprocess.CompletedProcess(command, self._killed(command))
        if name.endswith("text-tokenizer"):
            make_text_tokenizer.main(command[3:])
            return subprocess.CompletedProcess(command, 0)
        return subprocess.CompletedProcess(command, run(*command[3:]))

    def _killed(self, command: list[str]) -> int:
        code = "import sys; from tests.train.test_recipe_whole import run_and_die; run_and_die(sys.argv[1:])"
        # As in this process: torch's results may depend on the number of threads.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        return RUN([command[0], "-c", code, *command[1:]], env=environment).returncode


RUN = subprocess.run  # the recipe's is replaced


@pytest.mark.slow
def test_it_goes_on_wherever_it_was_killed_to_the_same_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    killer = Killer()
    monkeypatch.setattr(subprocess, "run", killer)
    codes = []
    while not codes or codes[-1] == 128 + signal.SIGKILL:
        with pytest.raises(SystemExit) as end:
            recipe.main(ARGUMENTS)
        codes.append(end.value.code)
    assert codes == [128 + signal.SIGKILL] * len(KILLED) + [1]  # the floors are missed
    assert "missed: steps, seen: " in capfd.readouterr().out
    assert (recipe.RUNS / "report.json").is_file()
    for training in recipe.TRAININGS:
        assert killer.names.count(training.config) == 1 + (training.config in KILLED)

    write.write_world(World(0, 20), tmp_path / "world", lambda: None)
    assert files_of(recipe.WORLD) == files_of(tmp_path / "world")
    for training in (each for each in recipe.TRAININGS if each.config in KILLED):
        config: Any = load_config(training.kind, str(recipe.RUNS / training.run / "config.yaml"))
        train(config, tmp_path / training.run)
        assert_same_runs(recipe.RUNS / training.run, tmp_path / training.run)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
