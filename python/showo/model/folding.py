"""The weights of a plain model from those that a training has: sums in place of their parts, under the official names.

Two of the trainer's options put something beside a weight: `code_bits` (a table and what its rows share), and `lora` (a
linear layer and its adapter). The names of their parts say which weights these are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from showo.errors import CheckpointError
from showo.model.lora import ADAPTER_CONFIG

if TYPE_CHECKING:
    from showo.model.code_bits import CodeBits
    from showo.model.weight_files import Reader

_TABLE, _SHARED = ".parametrizations.weight.original", ".parametrizations.weight.0.weight"
_BASE, _A, _B = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


def folded(readers: Mapping[str, Reader], folder: Path) -> Iterator[tuple[str, Reader]]:
    """Names, shapes and functions that read or compute the weight. folder: of the checkpoint, which knows the sizes."""
    for name, (shape, read) in readers.items():
        if name.endswith(_TABLE):
            owner = name.removesuffix(_TABLE)
            yield f"{owner}.weight", (shape, _with_bits(read, readers[owner + _SHARED][1], _code_bits(folder, shape)))
        elif name.endswith(_BASE):
            owner = name.removesuffix(_BASE)
            yield f"{owner}.weight", (shape, _with_adapter(read, readers, owner, folder))
        elif not name.endswith((_SHARED, _A, _B)):
            yield name.replace(".base_layer.", "."), (shape, read)


def _code_bits(folder: Path, shape: tuple[int, ...]) -> CodeBits:
    from showo.config import ShowoConfig
    from showo.model.code_bits import CodeBits  # which needs the models, and these the module of weights
    from showo.model.weights import read_config

    return CodeBits(read_config(folder, ShowoConfig).vocabulary, shape[1], 0.0).requires_grad_(False)


def _with_bits(read: Callable[[], Tensor], shared: Callable[[], Tensor], bits: CodeBits) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        bits.weight.copy_(shared())
        return bits(read())

    return compute


def _with_adapter(
    read: Callable[[], Tensor], readers: Mapping[str, Reader], owner: str, folder: Path
) -> Callable[[], Tensor]:
    if owner + _A not in readers:
        return read
    scale = adapter_scale(folder)
    return lambda: read() + readers[owner + _B][1]() @ readers[owner + _A][1]() * scale


def adapter_scale(folder: Path) -> float:
    """What the product of an adapter's matrices is multiplied by: alpha / rank."""
    path = folder / ADAPTER_CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return float(found["lora_alpha"]) / int(found["r"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} does not say lora_alpha and r of the adapters beside it: {error}") from error


def adapters(readers: Mapping[str, Reader]) -> dict[str, Reader]:
    """Those of a training's weights that belong to adapters, under peft's names."""
    return {
        "base_model.model." + name.replace(".default.", "."): reader
        for name, reader in readers.items()
        if name.endswith((_A, _B))
    }
