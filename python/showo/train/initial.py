"""What a training starts from: fresh weights, or those of a checkpoint."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from torch import nn

from ..errors import CheckpointError, ConfigError
from ..model.building import Building

M = TypeVar("M", bound=nn.Module)


def initial_model(kind: type[M], config: Any, source: str) -> M:
    """A `kind` of this configuration with the weights of the checkpoint `source` unless that is empty.

    Raises CheckpointError where the checkpoint's configuration is another one, ConfigError for absurd sizes.
    """
    if not source:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        absurd = ConfigError(f"model: its weights and their gradients do not fit {memory >> 30} GiB of memory")
        with Building(memory // 8, absurd, fill=True):
            return kind(config)
    model: Any = kind.from_pretrained(source)  # type: ignore[attr-defined]
    if model.config != config:
        raise CheckpointError(f"init_from: {source} has another model configuration than this run")
    return model
