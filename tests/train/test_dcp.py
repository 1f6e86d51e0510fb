"""Checkpoints of torch.distributed.checkpoint from anybody: they are read, and nothing that they hold is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from showo.errors import CheckpointError
from showo.model.dcp import METADATA_NAME, TensorReader, open_dcp, read_metadata

TENSORS = {
    "weights.a": torch.randn(3, 5),
    "weights.b": torch.randn(7).bfloat16(),
    "optimizer.step.a": torch.tensor(4.0),
    "ids": torch.arange(6),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save({**TENSORS}, storage_writer=dcp.FileSystemWriter(tmp_path / "state"))
    return tmp_path / "state"


def test_tensors_are_read_one_at_a_time(folder: Path) -> None:
    found = open_dcp(folder)
    assert {name: shape for name, (shape, _) in found.items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}
    for name, expected in TENSORS.items():
        got = found[name][1]()
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


class Malicious:
    def __init__(self, function: Callable[..., Any], argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


def rewritten(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / METADATA_NAME
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


def with_entry(name: str, entry: Any) -> Callable[[Any], Any]:
    return lambda found: replace(found, state_dict_metadata={**found.state_dict_metadata, name: entry})


def with_files(**changes: Any) -> Callable[[Any], Any]:
    return lambda found: replace(
        found, storage_data={index: replace(info, **changes) for index, info in found.storage_data.items()}
    )


def without_a_part(found: Any) -> Any:
    entry = found.state_dict_metadata["weights.a"]
    chunk = replace(entry.chunks[0], sizes=torch.Size([2, 5]))
    return with_entry("weights.a", replace(entry, chunks=[chunk]))(found)


def test_a_description_runs_nothing(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    for thing in (Malicious(Path.touch, victim), {"a": Malicious(exec, f"open({str(victim)!r}, 'w')")}):
        (folder / METADATA_NAME).write_bytes(pickle.dumps(thing))
        with pytest.raises(CheckpointError, match=r"metadata does not describe tensors: it names .* not let in"):
            read_metadata(folder)
        with pytest.raises(CheckpointException, match="not let in"):
            dcp.load({"weights.a": torch.zeros(3, 5)}, storage_reader=TensorReader(folder))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_entry("weights.a", BytesStorageMetadata()), r"names .*\.BytesStorageMetadata, which is not let in"),
        (with_entry("weights.a", torch.Size([1])), r"weights\.a is no tensor"),
        (with_files(relative_path="../other/__0_0.distcp"), "it names a file outside its folder"),
        (with_files(relative_path="/etc/passwd"), "it names a file outside its folder, '/etc/passwd'"),
        (without_a_part, r"the parts of weights\.a are not the whole of it"),
        (lambda found: torch.Size([1]), "it is a Size"),
    ],
)
def test_a_description_of_anything_else_is_refused(folder: Path, change: Callable[[Any], Any], reason: str) -> None:
    """An entry that is no tensor would be unpickled when it is loaded."""
    rewritten(folder, change)
    with pytest.raises(CheckpointError, match=reason):
        read_metadata(folder)


def test_an_entry_that_is_a_pickle_runs_nothing(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    (folder / "evil.distcp").write_bytes(pickle.dumps(Malicious(Path.touch, victim), protocol=2))
    size = (folder / "evil.distcp").stat().st_size
    rewritten(folder, with_files(relative_path="evil.distcp", offset=0, length=size))
    with pytest.raises(CheckpointError, match=r"weights\.a cannot be read"):
        open_dcp(folder)["weights.a"][1]()
    assert not victim.exists()


def test_a_file_that_was_cut_is_named(folder: Path) -> None:
    (path,) = folder.glob("*.distcp")
    path.write_bytes(path.read_bytes()[:100])
    readers = open_dcp(folder)

    def read(name: str) -> Tensor:
        return readers[name][1]()

    with pytest.raises(CheckpointError, match=r"state: .* cannot be read"):
        [read(name) for name in TENSORS]
