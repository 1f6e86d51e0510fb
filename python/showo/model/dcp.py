"""Tensors of a checkpoint as torch.distributed.checkpoint (DCP) writes it, read one at a time and without trust.

DCP describes its files in a pickle, and unpickles every entry that is no tensor. Here only the classes of such a
description are let in, and only tensors are taken for entries, so that a checkpoint from anywhere executes nothing.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

from showo.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from showo.model.weight_files import Reader

METADATA_NAME = ".metadata"
_DCP = "torch.distributed.checkpoint."
_ADMITTED = {
    *(
        (_DCP + "metadata", name)
        for name in (
            "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
            "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
    (_DCP + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not let in")
        return super().find_class(module, name)


def read_metadata(folder: str | os.PathLike[str]) -> Metadata:
    """What the folder of a DCP checkpoint says of its tensors. Raises CheckpointError where it says anything else."""
    path = Path(folder) / METADATA_NAME
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
        _check(found)
    except Exception as error:  # whatever a damaged or malicious pickle can lead to
        raise CheckpointError(f"{path} does not describe tensors: {first_line(error)}") from error
    return found


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors. Raises CheckpointError as `read_metadata`."""
    entries: Mapping[str, Any] = read_metadata(folder).state_dict_metadata
    return {name: tuple(entry.size) for name, entry in entries.items()}


def _check(found: Any) -> None:
    if not isinstance(found, Metadata):
        raise ValueError(f"it is a {type(found).__name__}")
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise ValueError(f"the parts of {name} are not the whole of it")
    for info in found.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError(f"it names a file outside its folder, {info.relative_path!r}")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{info.relative_path} is transformed")


class TensorReader(FileSystemReader):
    """DCP's own reader, which takes the description of its files from `read_metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(self.path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def open_dcp(folder: Path) -> dict[str, Reader]:
    """Shape and a function that reads the tensor, for every tensor of a DCP checkpoint.

    Raises CheckpointError, as that function does, where the checkpoint is damaged.
    """
    metadata = read_metadata(folder)
    entries: Mapping[str, Any] = metadata.state_dict_metadata
    return {
        name: (tuple(entry.size), partial(_read, folder, name, entry, metadata.storage_data))
        for name, entry in entries.items()
    }


def _read(folder: Path, name: str, entry: TensorStorageMetadata, places: Mapping[MetadataIndex, Any]) -> Tensor:
    try:
        parts = {chunk.offsets: _part(folder, places[MetadataIndex(name, chunk.offsets)]) for chunk in entry.chunks}
        if len(parts) == 1 and (whole := next(iter(parts.values()))).shape == entry.size:
            return whole
        out = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            ends = (slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            out[tuple(ends)].copy_(parts[chunk.offsets].view(chunk.sizes))
        return out
    except Exception as error:  # of files, of torch's reader, of shapes
        raise CheckpointError(f"{folder}: {name} cannot be read: {first_line(error)}") from error


def _part(folder: Path, info: Any) -> Tensor:
    with open(folder / info.relative_path, "rb") as file:
        file.seek(info.offset)
        part = torch.load(io.BytesIO(file.read(info.length)), map_location="cpu", weights_only=True)
    if not isinstance(part, Tensor):
        raise TypeError(f"{info.relative_path} holds a {type(part).__name__}")
    return part
