"""What a training starts from: fresh weights, or those of a checkpoint."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import nn

from showo.errors import CheckpointError, ConfigError
from showo.model.building import Building

M = TypeVar("M", bound=nn.Module)


def initial_model(kind: type[M], config: Any, source: str, seed: int) -> M:
    """A `kind` of this configuration with the weights of the checkpoint `source`, or drawn from `seed` without one.

    Raises CheckpointError where there is none or one of another configuration, ConfigError for absurd sizes.
    """
    if not source:
        torch.manual_seed(seed % 2**64)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        absurd = ConfigError(f"model: its weights and their gradients do not fit {memory >> 30} GiB of memory")
        with Building(memory // 8, absurd, fill=True):
            return kind(config)
    model: Any = kind.from_pretrained(source)  # type: ignore[attr-defined]
    here, there = asdict(config), asdict(model.config)
    if differing := [f"{key} is {there[key]}, not {value}" for key, value in here.items() if there[key] != value]:
        raise CheckpointError(f"init_from: {source} has another model configuration: {', '.join(differing)}")
    return model
