"""The tensors of a checkpoint's folder, in every layout that there is, read one at a time and without trust.

Pickles (`pytorch_model.bin`, as released) are read with `weights_only=True`, which executes nothing. Weights that a
wrapper of training has put under a prefix, or beside a state of its own, are found there.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from showo.errors import CheckpointError
from showo.model.folding import folded

# Of a training's checkpoint: the folder of all tensors of the training, as DCP writes them, and the file of the rest.
STATE_NAME, FACTS_NAME = "state", "training.json"
WEIGHTS, AVERAGE = "weights.", "average."  # how the names of weights, and of their averages, begin there
WEIGHTS_NAME = "model.safetensors"
INDEX_SUFFIX = ".index.json"
# In this order; the last two are how the released folders call theirs.
WEIGHT_FILES = (WEIGHTS_NAME, "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
# What files of weights end in, whatever they are called.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# What DDP, torch.compile and FSDP1 put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")

Reader = tuple[tuple[int, ...], Callable[[], Tensor]]  # a tensor's shape, and a function that reads it


def open_tensors(folder: Path, *, average: bool = False) -> dict[str, Reader]:
    """Shape and a function that reads the tensor, by name, for every tensor of the folder's checkpoint.

    Where no file has one of the usual names (`WEIGHT_FILES`), a single file of weights of any name is taken.

    average: of a training's checkpoint, those averages that it has, in place of the weights.

    Raises:
        CheckpointError: there are no weights, more than one file that may hold them, or damaged ones.
    """
    if average or (folder / STATE_NAME).is_dir():
        return dict(folded(trained_weights(folder, average=average), folder))
    path = _weights_path(folder)
    return _without_wrappers(dict(_open_shards(path) if path.name.endswith(INDEX_SUFFIX) else _open_file(path)))


def has_weights(folder: Path) -> bool:
    """Whether there is a file of weights, or an index of shards, of one of the usual names."""
    return _usual_path(folder) is not None


def _usual_path(folder: Path) -> Path | None:
    paths = (folder / (name + suffix) for name in WEIGHT_FILES for suffix in ("", INDEX_SUFFIX))
    return next((path for path in paths if path.is_file()), None)


def _weights_path(folder: Path) -> Path:
    """The file of a folder's weights, or the index of its shards."""
    if usual := _usual_path(folder):
        return usual
    others = sorted(path for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    if len(others) == 1:
        return others[0]
    found = f"; which of {', '.join(path.name for path in others)} is meant? Rename it" if others else ""
    raise CheckpointError(
        f"{folder} has no weights (looked for {', '.join(WEIGHT_FILES)} and their {INDEX_SUFFIX}){found}"
    )


def _without_wrappers(readers: dict[str, Reader]) -> dict[str, Reader]:
    """The same under the model's own names, where every name begins with what a wrapper has put there."""
    for prefix in _WRAPPERS:
        if readers and all(name.startswith(prefix) for name in readers):
            return _without_wrappers({name.removeprefix(prefix): reader for name, reader in readers.items()})
    return readers


def trained_weights(folder: Path, *, average: bool = False) -> dict[str, Reader]:
    """The weights of a training's checkpoint as the training has them, or the averages of those that learn.

    Raises CheckpointError where the checkpoint is damaged, or has no averages.
    """
    from showo.model.dcp import open_dcp  # torch.distributed takes long to import, and most checkpoints have no need

    found = open_dcp(folder / STATE_NAME) if (folder / STATE_NAME).is_dir() else {}
    if average and not any(name.startswith(AVERAGE) for name in found):
        raise CheckpointError(f"{folder} has no averages of weights; a training with ema_decay keeps them")
    begins = (WEIGHTS, AVERAGE) if average else (WEIGHTS,)
    return {name.removeprefix(begin): found[name] for begin in begins for name in found if name.startswith(begin)}


def _open_shards(index: Path) -> Iterator[tuple[str, Reader]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weight shards: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} names a shard outside its folder: {shard!r}")
    absent = [shard for shard in shards if not os.path.isfile(index.parent / shard)]
    if absent:
        raise CheckpointError(f"{index.parent} lacks {len(absent)} of {len(shards)} weight shards: {', '.join(absent)}")
    for shard in shards:
        promised = {name for name, file in weight_map.items() if file == shard}
        for name, reader in _open_file(index.parent / shard):
            if name not in promised:
                raise CheckpointError(f"{index.parent / shard} holds {name}, which {index.name} does not place there")
            promised.remove(name)
            yield name, reader
        if promised:
            raise CheckpointError(f"{index.parent / shard} lacks {', '.join(sorted(promised)[:4])}")


def _open_file(path: Path) -> Iterator[tuple[str, Reader]]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, (tuple(file.get_slice(name).get_shape()), _reader(file, name))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete: {error}") from error
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # zip, pickle and refused-global errors alike
        raise CheckpointError(f"{path} cannot be read as plain weights: {_refusal(path, error)}") from error
    for name, tensor in _state_dict(state, path).items():
        yield name, (tuple(tensor.shape), _loaded(tensor))


def _refusal(path: Path, error: Exception) -> str:
    """Why torch refuses a pickle: what it would execute, if that is the reason."""
    try:
        code = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is damaged, or no zip archive, of which torch cannot tell
        code = []
    if code:
        return f"it asks to run {', '.join(code[:3])}; have its owner save model.state_dict() alone"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _state_dict(found: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict that a file holds, alone or as one entry of what a trainer keeps."""
    if _is_state_dict(found):
        return found
    entries = found if isinstance(found, Mapping) else {}
    inside = [name for name, entry in entries.items() if _is_state_dict(entry) and entry]
    if len(inside) > 1:
        raise CheckpointError(
            f"{path} holds several state dicts, {', '.join(map(str, inside))}; save the one that is meant alone"
        )
    if not inside:
        raise CheckpointError(f"{path} is not a state dict of tensors")
    return entries[inside[0]]


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    )


def _reader(file: Any, name: str) -> Callable[[], Tensor]:
    return lambda: file.get_tensor(name)


def _loaded(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor
