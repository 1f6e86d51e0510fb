"""The kernels as operators of torch: in the kernel package this module stands where the pybind11 module is elsewhere.

It has the functions of that module; csrc/bindings/stable_abi.cpp says what the operators behind them look like.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ERRORS = {1: ValueError, 2: NotImplementedError, 3: RuntimeError}  # by the number of a showo::StatusCode
ENDING = ".abi3.so"


def _load() -> Any:
    """The namespace of the operators, which the library beside this file has the name of."""
    (library,) = Path(__file__).parent.glob(f"*{ENDING}")
    namespace = getattr(torch.ops, library.name.removesuffix(ENDING))
    if not hasattr(namespace, "build_info"):  # else a copy of this package is in the process, with the same library
        torch.ops.load_library(library)
    return namespace


_OPS = _load()

signatures: dict[str, dict[str, str]] = json.loads(_OPS.signatures())


def build_info() -> dict[str, Any]:
    return json.loads(_OPS.build_info())


def set_cpu_isa(name: str) -> None:
    _raise_if_error(*_OPS.set_cpu_isa(name))


def __getattr__(name: str) -> Any:
    """Functions of sizes are operators of the same arguments."""
    return getattr(_OPS, name)


def _raise_if_error(status: int, message: str) -> None:
    if status:
        raise ERRORS[status](message)


def _launcher(name: str, kinds: dict[str, str]) -> Callable[[dict[str, Any]], None]:
    operator = getattr(_OPS, name).default

    def launch(arguments: dict[str, Any]) -> None:
        if arguments.keys() != kinds.keys():
            wrong = sorted(arguments.keys() ^ kinds.keys())
            raise TypeError(f"{name} lacks, or has no, argument {', '.join(wrong)}")
        # By place, since torch takes three times as long for arguments by name.
        _raise_if_error(*operator(*[arguments[key] for key in kinds]))

    return launch


for _name, _kinds in signatures.items():
    globals()[_name] = _launcher(_name, _kinds)
