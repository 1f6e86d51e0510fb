"""A small call of every public function, with all its gradients, for tests that hold for all of them.

It stands among the tests of its operator, in tests/<family>/test_<file>.py:

    def example_lfq_encode(package, dtype):       # showo_ext or showo_ext.reference; of the floats among its inputs
        return [package.lfq_encode(...)]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from showo_ext.ops import OPERATORS

Example = Callable[[ModuleType, torch.dtype], Sequence[torch.Tensor]]
PREFIX = "example_"


def examples() -> dict[str, Example]:
    """By the name of the public function."""
    files = sorted({f"tests.{rooms.family}.test_{rooms.file}" for rooms in OPERATORS.values()})
    named = [pair for file in files for pair in vars(importlib.import_module(file)).items()]
    return {name.removeprefix(PREFIX): value for name, value in named if name.startswith(PREFIX)}
