"""What a training starts from: fresh weights, or those of a checkpoint, such as the stage before."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from showo.errors import CheckpointError, ConfigError
from showo.files import local_path
from showo.model.building import Building
from showo.train.checkpoint import checkpoints

M = TypeVar("M", bound=nn.Module)

# Settings of a model that no weight hangs on, and what becomes of the model where they change.
_LENGTHS = {
    "num_vq_tokens": "pictures of another size",
    "max_text_len": "texts of another length, so pictures stand at other positions",
    "mmu_text_len": "answers of another length",
    "mmu_vit_text_len": "answers of another length",
    "max_positions": "rows of another length at most",
}


def initial_model(
    kind: type[M], config: Any, source: str, seed: int, tell: Callable[[str], object], *, whole: bool = False
) -> M:
    """A `kind` of this configuration with the weights of the checkpoint `source`, or drawn from `seed` without one.

    A run stands for its newest checkpoint. A Show-o may have other lengths than its checkpoint, and a projector that
    the checkpoint has not (drawn from `seed`), or none where it has one: `tell` gets a line about each difference.

    whole: a checkpoint without a projector that the model has will not do.

    Raises CheckpointError where there is none or one of another configuration, ConfigError for absurd sizes.
    """
    if not source:
        return fresh_model(partial(kind, config), seed)
    if (newest := newest_checkpoint(source)) != source:
        source = newest
        tell(f"init_from: {source}")
    found: Any = kind.from_pretrained(source)  # type: ignore[attr-defined]
    here, there = asdict(config), asdict(found.config)
    differing = {key: f"{there[key]} -> {here[key]}" for key in here if there[key] != here[key]}
    free = {*_LENGTHS, "w_clip_vit"}
    if not (here.get("w_clip_vit") and there.get("w_clip_vit")):
        free.add("clip_width")  # of a projector that only one of them has, or none
    if wrong := [f"{key} is {there[key]}, not {here[key]}" for key in differing if key not in free]:
        ids = "; weights of other ids cannot be taken" if {"text_vocab_size", "codebook_size"} & {*differing} else ""
        raise CheckpointError(f"init_from: {source} has another model configuration: {', '.join(wrong)}{ids}")
    for key, change in differing.items():
        if key in _LENGTHS:
            tell(f"init_from: {key} {change}: {_LENGTHS[key]}; all weights are taken")
    if not differing:
        return found
    model = fresh_model(partial(kind, config), seed)
    weights = found.state_dict()
    new = [name for name in model.state_dict() if name not in weights]
    unused = [name for name in weights if name not in model.state_dict()]
    if new and whole:
        raise CheckpointError(
            f"init_from: {source} lacks {', '.join(new)}, which adapters do not learn; train them first, such as with "
            "lora.rank=0 frozen=[showo.*]"
        )
    if new:
        tell(f"init_from: {', '.join(new)} are not in {source}, and start as drawn from the seed")
    if unused:
        tell(f"init_from: {', '.join(unused)} of {source} are not used")
    model.load_state_dict({**model.state_dict(), **{n: w for n, w in weights.items() if n not in unused}})
    return model


def newest_checkpoint(source: str) -> str:
    """The newest checkpoint of a run; of what is no run, such as a checkpoint or a hub id, `source` itself."""
    run = Path(local_path(source))
    steps = checkpoints(run) if os.path.isdir(run) else []
    return str(steps[-1]) if steps else source


def fresh_model(build: Callable[[], M], seed: int) -> M:
    """What `build` makes, with weights drawn from `seed`. Raises ConfigError for absurd sizes."""
    torch.manual_seed(seed % 2**64)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    absurd = ConfigError(f"model: its weights and their gradients do not fit {memory >> 30} GiB of memory")
    with Building(memory // 8, absurd, fill=True):
        return build()


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Parameters whose name one of the patterns matches (`showo.model.layers.0.*`) learn nothing.

    Raises ConfigError for a pattern that no name matches, and where no parameter is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"frozen: no parameter's name matches {pattern!r}; one is {names[0]!r}")
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"frozen: no parameter is left to learn, got {patterns}")
