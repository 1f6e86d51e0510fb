"""Training checkpoints: a folder per step, complete or absent. How one is written is in `showo.train.saving`.

RUN/checkpoints/step-000500/   config.json ...   (what belongs to the model besides its weights)
                               state/            (all tensors of the training, as torch.distributed.checkpoint writes
                                                 them, each once: weights, their averages, the optimizer's state)
                               training.json     (the step, the configuration, what the sources hold, versions)
                               SHA256SUMS        (of all files, checked before a run goes on)
RUN/checkpoints/latest         (the name of the newest one)

`from_pretrained` loads such a folder; `showo export` makes one of safetensors of it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from showo.errors import CheckpointError
from showo.files import atomic_write_text, remove_folder
from showo.model.dcp import TensorReader, stored_shapes
from showo.model.weight_files import AVERAGE, FACTS_NAME, STATE_NAME, WEIGHTS
from showo.model.weights import check_names_and_shapes
from showo.train.checksums import check_checksums
from showo.train.config import LoopConfig, to_yaml
from showo.train.ema import WeightAverage
from showo.train.parallel import Parallel
from showo.train.pools import SourceFacts, changed_sources

OPTIMIZER = "optimizer."  # how the names of the optimizer's tensors begin: optimizer.exp_avg.NAME OF THE PARAMETER
_OLD_NAME = "training.pt"  # of checkpoints that older versions have written

_STEP = re.compile(r"step-\d+")
# What may differ between a run and its continuation without changing what is computed.
_FREE = (
    "log_every", "validate_every", "validation_samples", "validation_prompts", "validate_ema", "checkpoint_every",
    "keep_checkpoints", "keep_every", "max_seconds", "step_timeout", "pause_timeout", "max_skipped_steps",
    "broken_share", "workers", "prefetch", "wandb", "data_root", "sources", "parallel", "fsdp",
)  # fmt: skip
_SHOWN = 8  # at most so many differing settings are listed


def step_name(step: int) -> str:
    """Of the folder that holds the checkpoint after so many steps."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def name_latest(checkpoint: Path) -> None:
    """Writes RUN/checkpoints/latest, for other programs: it only ever names a whole checkpoint."""
    atomic_write_text(checkpoint.with_name("latest"), checkpoint.name + "\n")


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if _STEP.fullmatch(p.name)), key=step_of)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """All tensors of a training, themselves, by their names in a checkpoint. Ranks that have parts have parts here."""
    found: dict[str, Tensor] = {WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        found.update({AVERAGE + name: tensor for name, tensor in average.tensors.items()})
    for name, parameter in model.named_parameters():
        found.update({f"{OPTIMIZER}{key}.{name}": x for key, x in optimizer.state.get(parameter, {}).items()})
    return found


def load_checkpoint(
    run: Path,
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    config: LoopConfig,
    source_facts: Mapping[str, Sequence[SourceFacts]],
    tell: Callable[[str], object],
) -> int | None:
    """Loads the newest whole checkpoint into model, optimizer and average; returns its step, None without one.

    All ranks call this together. Each reads what it has of the tensors, however many ranks have written them; rank 0
    finds the checkpoint. Newer ones that are damaged are set aside, under a name with ".damaged"; `tell` gets a line
    about each. source_facts: of the sources of every stream, as they are now, on rank 0.

    Raises CheckpointError if all are damaged, or if the run was made with another configuration, or with other files
    of data: it would not be the same run.
    """
    optimizer.state.clear()
    shapes = {name: tuple(x.shape) for name, x in tensors_of(parallel.model, optimizer, average).items()}
    found = _newest_whole(run, shapes, config, source_facts, tell) if parallel.ranks.first else None
    found = parallel.ranks.from_first(found)
    if found is None:
        return None
    path, step = found
    _make_room(optimizer, parallel.model, stored_shapes(path / STATE_NAME))
    try:
        load(tensors_of(parallel.model, optimizer, average), storage_reader=TensorReader(path / STATE_NAME))
    except CheckpointException as error:  # no Exception for Python
        raise CheckpointError(f"{path / STATE_NAME} cannot be loaded: {' '.join(str(error).split())}") from error
    return step


def _make_room(optimizer: torch.optim.Optimizer, model: nn.Module, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Gives the optimizer tensors to load its state into: of the shape of their parameter, or numbers, as the step."""
    parameters = dict(model.named_parameters())
    for stored_name, shape in stored.items():
        if stored_name.startswith(OPTIMIZER):
            key, name = stored_name.removeprefix(OPTIMIZER).split(".", 1)
            if (parameter := parameters.get(name)) is not None:
                if shape == tuple(parameter.shape):
                    room = torch.zeros_like(parameter)
                else:
                    room = torch.zeros((), dtype=torch.float32, device=parameter.device)
                optimizer.state[parameter][key] = room


def _newest_whole(
    run: Path,
    shapes: dict[str, tuple[int, ...]],
    config: LoopConfig,
    source_facts: Mapping[str, Sequence[SourceFacts]],
    tell: Callable[[str], object],
) -> tuple[Path, int] | None:
    """The newest whole checkpoint, and its step. shapes: of the tensors that it has to hold, among others."""
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in reversed(checkpoints(run)):
        try:
            step, refusal = _check(path, shapes, config, source_facts)
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        if refusal:
            raise CheckpointError(f"resume: {path} was made with {refusal}, or begin another run with init_from")
        _set_aside(damaged, path, tell)
        return path, step
    if damaged:
        reasons = "; ".join(str(error) for _, error in damaged)
        raise CheckpointError(f"resume: no checkpoint of {run} is whole: {reasons}")
    return None


def _set_aside(damaged: list[tuple[Path, CheckpointError]], used: Path, tell: Callable[[str], object]) -> None:
    """Takes the name from checkpoints newer than the one in use, lest they are counted as the newest ones later."""
    if damaged:
        name_latest(used)
    for path, error in damaged:
        aside = path.with_name(path.name + ".damaged")
        remove_folder(aside)
        path.rename(aside)
        tell(f"damaged checkpoint: {error}; set aside as {aside.name}, going on from {used.name}")


def _check(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    config: LoopConfig,
    source_facts: Mapping[str, Sequence[SourceFacts]],
) -> tuple[int, str]:
    """The step of a checkpoint that is whole, and what it was made with that is not so any more: "" for nothing.

    Raises CheckpointError.
    """
    if (path / _OLD_NAME).exists():
        raise CheckpointError(
            f"{path} is of an older version, which cannot be resumed; begin another run with init_from={path}"
        )
    check_checksums(path)
    facts = read_facts(path)
    if step_name(facts["step"]) != path.name:
        raise CheckpointError(f"{path / FACTS_NAME} is of step {facts['step']}")
    if differing := _differences(facts["config"], config):
        return facts["step"], f"another configuration: {_first(differing)}; resume with the old values"
    if changed := changed_sources(facts.get("sources", {}), source_facts):
        return facts["step"], f"other data: {_first(changed)}; resume with the old files"
    stored = stored_shapes(path / STATE_NAME)
    found = {name: shape for name, shape in stored.items() if not name.startswith(OPTIMIZER)}
    check_names_and_shapes(shapes, found, what=str(path / STATE_NAME), into="this training")
    return facts["step"], ""


def _first(differences: list[str]) -> str:
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return ", ".join(differences[:_SHOWN]) + more


def read_facts(path: Path) -> dict[str, Any]:
    """What training.json of a checkpoint says. Raises CheckpointError where it says nothing of the kind."""
    file = path / FACTS_NAME
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(facts["step"], int) and isinstance(facts["config"], str)):
            raise TypeError("step must be a number, config a text")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return facts


def _differences(old: str, config: LoopConfig) -> list[str]:
    """What keeps a run with the configuration `old` (YAML) and its continuation from being the same, as
    "optimizer.lr 0.001 -> 0.5". An option that is younger than the run had its default there.
    """
    texts = OmegaConf.to_yaml(OmegaConf.structured(type(config))), old, to_yaml(config)
    defaults, before, now = (_flat(OmegaConf.to_container(OmegaConf.create(text))) for text in texts)
    before = {**defaults, **before}
    return [
        f"{key} {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key.split(".")[0] not in _FREE
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their full names: {"optimizer": {"lr": 1}} is {"optimizer.lr": 1}."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {name: value for key, part in tree.items() for name, value in _flat(part, f"{prefix}{key}.").items()}


def prune_checkpoints(run: Path, keep: int, every: int = 0) -> None:
    """Deletes all but the newest `keep` checkpoints, and what a process that was killed has left half done.

    every: checkpoints of steps that are multiples of it stay; 0: of no step.
    """
    folder = run / "checkpoints"
    old = [path for path in checkpoints(run)[:-keep] if not every or step_of(path) % every]
    for path in (*old, *folder.glob("step-*.tmp")):
        remove_folder(path)
    for path in folder.glob("step-*.old"):
        shutil.rmtree(path)
