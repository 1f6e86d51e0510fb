"""Training checkpoints: a folder per step, complete or absent.

RUN/checkpoints/step-000500/   config.json model.safetensors   (loads with from_pretrained)
                               training.pt                     (optimizer, step, weights that the model
                                                                file does not hold; weights_only)
                               ema/                            (config.json and model.safetensors of the average)
                               SHA256SUMS                      (of all files, checked before a run goes on)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor, nn

from showo.errors import CheckpointError, OutputError
from showo.files import atomic_folder, remove_folder
from showo.model.weights import open_tensors
from showo.train.checksums import check_checksums, write_checksums
from showo.train.config import LoopConfig, to_yaml
from showo.train.ema import WeightAverage
from showo.train.parallel import Parallel

_STEP = re.compile(r"step-(\d+)")
# What may differ between a run and its continuation without changing what is computed.
_FREE = (
    "log_every", "validate_every", "validation_samples", "validation_prompts", "checkpoint_every", "keep_checkpoints",
    "max_seconds", "step_timeout", "pause_timeout", "max_skipped_steps", "validate_ema", "broken_share", "workers",
    "prefetch", "wandb", "data_root", "sources", "parallel", "fsdp",
)  # fmt: skip
EMA_NAME = "ema"
_SHOWN = 8  # at most so many differing settings are listed


def step_name(step: int) -> str:
    """Of the folder that holds the checkpoint after so many steps."""
    return f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in (run / "checkpoints").glob("step-*") if (m := _STEP.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def save_checkpoint(
    run: Path,
    step: int,
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    config: LoopConfig,
    attach: Callable[[Path], object] | None,
) -> Path:
    """Writes the folder step-N as `atomic_folder` does, so that a folder of that name is always whole.

    All ranks call this together; rank 0 writes. Raises OutputError where the disk is full, or refuses for another
    reason.
    """
    final = run / "checkpoints" / step_name(step)
    try:
        with atomic_folder(final) if parallel.ranks.first else nullcontext() as folder:
            state = {"optimizer": parallel.optimizer_state(optimizer), "step": step, "config": to_yaml(config)}
            with parallel.whole() as model:
                state["weights"] = _save_model(model, folder)
            if average is not None:
                with average.in_place(), parallel.whole() as model:
                    state["ema_weights"] = _save_model(model, folder and folder / EMA_NAME)
            if folder is not None:
                # Through a Python file, whose errors say what the matter is; torch's own writer speaks of positions.
                with open(folder / "training.pt", "wb") as file:
                    torch.save(state, file)
                if attach is not None:
                    for path in (folder, folder / EMA_NAME) if average is not None else (folder,):
                        attach(path)
                write_checksums(folder)
    except (OSError, OutputError, SafetensorError, RuntimeError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise OutputError(f"step {step} could not be saved in {final.parent}: {reason}") from error
    return final


def _save_model(model: Any, folder: Path | None) -> dict[str, Tensor]:
    """Writes a model on the rank that has it. Returns the weights that are not written."""
    if model is None or folder is None:
        return {}
    model.save_pretrained(folder)
    return _not_in(folder, model)


def _not_in(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that the folder's model file does not hold under their names: what it holds may be computed
    from them, or it is a part of the model.
    """
    saved = {name for name, _ in open_tensors(folder)}
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items() if name not in saved}


def _weights(folder: Path, others: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The weights of these names, which the folder's model file holds, or the others do."""
    stored = {name: read for name, (_, read) in open_tensors(folder)}
    return {name: others[name] if name in others else stored[name]() for name in names}


def _refusal(error: BaseException | None) -> str | None:
    """Why the operating system refused to write; None where that is not behind the error."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, (OutputError, SafetensorError)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def load_checkpoint(
    run: Path,
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    config: LoopConfig,
    tell: Callable[[str], object],
) -> int | None:
    """Loads the newest whole checkpoint into model, optimizer and average; returns its step, None without one.

    All ranks call this together; rank 0 reads. Newer ones that are damaged are set aside, under a name with
    ".damaged"; `tell` gets a line about each. Raises CheckpointError if all are damaged, or if the run was made with
    another configuration: it would not be the same run.
    """
    names = list(parallel.model.state_dict())
    found = _newest_whole(run, names, average is not None, config, tell) if parallel.ranks.first else None
    step = parallel.ranks.from_first(None if found is None else int(found["step"]))
    if step is None:
        return None
    state = found or {"weights": {}, "ema_weights": {}, "optimizer": {}}
    if average is not None:
        parallel.load_weights(state["ema_weights"])
        average.restart()
    parallel.load_weights(state["weights"])
    parallel.load_optimizer(optimizer, state["optimizer"])
    return step


def _newest_whole(
    run: Path, names: list[str], averaged: bool, config: LoopConfig, tell: Callable[[str], object]
) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint, with the weights of these names, and their averages if asked for."""
    damaged: list[tuple[Path, CheckpointError]] = []
    for path in reversed(checkpoints(run)):
        try:
            state = _read_state(path)
            differing = _differences(state["config"], config)
            if not differing:
                state["weights"] = _weights(path, state["weights"], names)
                if averaged:
                    state["ema_weights"] = _weights(path / EMA_NAME, state["ema_weights"], names)
                _set_aside(damaged, path, tell)
                return state
        except CheckpointError as error:
            damaged.append((path, error))
            continue
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise CheckpointError(
            f"resume: {path} was made with another configuration: {', '.join(differing[:_SHOWN])}{more}; resume with "
            "the old values, or begin another run with init_from"
        )
    if damaged:
        reasons = "; ".join(str(error) for _, error in damaged)
        raise CheckpointError(f"resume: no checkpoint of {run} is whole: {reasons}")
    return None


def _set_aside(damaged: list[tuple[Path, CheckpointError]], used: Path, tell: Callable[[str], object]) -> None:
    """Takes the name from checkpoints newer than the one in use, lest they are counted as the newest ones later."""
    for path, error in damaged:
        aside = path.with_name(path.name + ".damaged")
        remove_folder(aside)
        path.rename(aside)
        tell(f"damaged checkpoint: {error}; set aside as {aside.name}, going on from {used.name}")


def _read_state(path: Path) -> dict[str, Any]:
    check_checksums(path)
    file = path / "training.pt"
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:  # of another version of torch; damage has been excluded
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} cannot be read: {reason}") from error
    if step_name(state["step"]) != path.name:
        raise CheckpointError(f"{file} is of step {state['step']}")
    return state


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


def prune_checkpoints(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what a process that was killed has left half done."""
    folder = run / "checkpoints"
    for path in (*checkpoints(run)[:-keep], *folder.glob("step-*.tmp")):
        remove_folder(path)
    for path in folder.glob("step-*.old"):
        shutil.rmtree(path)
