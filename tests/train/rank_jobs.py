"""Trainings one after the other in one of the processes that torchrun starts: a program for tests of several ranks.

    python -m torch.distributed.run ... rank_jobs.py FOLDER

FOLDER/jobs.json: what to train (`Job`). Of every job, FOLDER/NAME-RANK.json gets what this rank has seen (`Seen`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

import showo.train.loop as loops
from showo.errors import UserError
from showo.model.clip import ClipTower
from showo.train.config import ShowoTraining, load_config
from showo.train.ranks import leave_group
from showo.train.showo import train_showo


@dataclass(frozen=True)
class Job:
    """config: a YAML file. spoiled: steps whose loss is NaN on the last rank. counted: the step whose collectives are
    counted.
    """

    name: str
    config: str
    run: str
    resume: bool = False
    spoiled: list[int] = field(default_factory=list)
    counted: int = -1


@dataclass
class Seen:
    """losses: of every step. keys: of every step, the samples of this rank's rows, by stream. rows: how many they are.
    collectives: by name, how often they ran in the counted step. error: what ended the training.
    """

    losses: list[float] = field(default_factory=list)
    keys: list[dict[str, list[list[int]]]] = field(default_factory=list)
    collectives: dict[str, int] = field(default_factory=dict)
    error: str = ""


class Tower(torch.nn.Module):
    """In place of CLIP's: the mean colour of a picture."""

    side, image_tokens, width = 28, 4, 8

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((1, 2, 3))[:, None, None].expand(-1, 4, 8) / 255


def do(job: Job) -> Seen:
    """Trains as one of the ranks, or alone where there is no group."""
    seen = Seen()
    train_step = loops.train_step

    def noted(parallel: Any, optimizer: Any, loss: Any, rows: Any, counts: Any, number: int, *more: Any) -> Any:
        drawn = [each.drawn for each in rows]
        names = {name: None for each in drawn for name in each}
        seen.keys.append({n: [[d.source, d.index] for each in drawn for d in each.get(n, ())] for n in names})
        if number in job.spoiled and parallel.ranks.rank == parallel.ranks.count - 1:
            loss = spoiled(loss)
        if number != job.counted:
            return train_step(parallel, optimizer, loss, rows, counts, number, *more)
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            figures = train_step(parallel, optimizer, loss, rows, counts, number, *more)
        seen.collectives = dict(Counter(e.name for e in profile.function_events if e.name.startswith("c10d::")))
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "train_step", noted)
        patch.setattr(ClipTower, "from_pretrained", lambda source: Tower())
        config = load_config(ShowoTraining, job.config)
        try:
            seen.losses = train_showo(config, Path(job.run), resume=job.resume, console=Console(quiet=True)).history
        except UserError as error:
            seen.error = f"{type(error).__name__}: {error}"
    return seen


def spoiled(loss: Any) -> Any:
    def call(*arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, figures = loss(*arguments)
        return value * float("nan"), figures

    return call


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for each in json.loads((folder / "jobs.json").read_text()):
        job = Job(**each)
        seen = do(job)
        (folder / f"{job.name}-{dist.get_rank()}.json").write_text(json.dumps(asdict(seen)))
    dist.barrier()
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
