"""Training checkpoints: a folder per step, complete or absent.

RUN/checkpoints/step-000500/   config.json model.safetensors   (loads with from_pretrained)
                               training.pt                     (optimizer, step; weights_only)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import atomic_folder, remove_folder
from .config import LoopConfig, to_yaml

_STEP = re.compile(r"step-(\d+)")
# What may differ between a run and its continuation without changing what is computed.
_FREE = ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "max_seconds", "validation_prompts")


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in (run / "checkpoints").glob("step-*") if (m := _STEP.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _fingerprint(config: LoopConfig) -> str:
    lines = to_yaml(config).splitlines()
    kept, skipping = [], False
    for line in lines:
        if not line.startswith((" ", "-")):
            skipping = line.split(":")[0] in _FREE
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


def save_checkpoint(
    run: Path, step: int, model: Any, state: dict[str, Any], config: LoopConfig, attach: Callable[[Path], object] | None
) -> Path:
    """Writes the folder step-N as `atomic_folder` does, so that a folder of that name is always whole."""
    final = run / "checkpoints" / f"step-{step:06d}"
    with atomic_folder(final) as folder:
        model.save_pretrained(folder)
        torch.save({**state, "config": _fingerprint(config)}, folder / "training.pt")
        if attach is not None:
            attach(folder)
    return final


def load_checkpoint(run: Path, model: Any, config: LoopConfig) -> dict[str, Any] | None:
    """Loads the newest checkpoint's weights into `model` and returns its training state; None where there is none.

    Raises CheckpointError when the run was made with another configuration: the continuation would not be the same run.
    """
    found = checkpoints(run)
    if not found:
        return None
    state: dict[str, Any] = torch.load(found[-1] / "training.pt", weights_only=True)
    if state.pop("config") != _fingerprint(config):
        raise CheckpointError(f"resume: {found[-1]} was made with another configuration; see {run / 'config.yaml'}")
    trained = type(model).from_pretrained(found[-1], dtype=torch.float32)
    model.load_state_dict(trained.state_dict())
    return state


def prune_checkpoints(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what a process that was killed has left half done."""
    folder = run / "checkpoints"
    for path in (*checkpoints(run)[:-keep], *folder.glob("step-*.tmp")):
        remove_folder(path)
    for path in folder.glob("step-*.old"):
        shutil.rmtree(path)
