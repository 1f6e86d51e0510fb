"""`showo train --profile` and a training that memory does not suffice for."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from showo import cli
from showo.errors import OutOfMemoryError
from showo.memory import lack_of_memory
from showo.train.config import ShowoTraining
from showo.train.loop import train
from showo.train.out_of_memory import explained_lack_of_memory, needs_less
from showo.train.ranks import Ranks
from showo.train.showo import showo_loop
from tests.showo.command import failure, run
from tests.train.conftest import small_training
from tests.train.test_image_tokenizer import small_training as tokenizer_training
from tests.train.test_inspect import yaml_of

Folders = dict[str, Path]


def test_a_profile_of_some_steps(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml_of(small_training(folders, "steps=7", "accumulate=1", "t2i.batch=2", "mmu.batch=1"), tmp_path)
    arguments = ["--config", config, "--run", tmp_path / "run"]
    assert run("train", *arguments, "--profile", "2") == 0
    path = tmp_path / "run" / "profile-000005.json"
    assert f"a profile of 2 steps after step 4 is {path}" in capsys.readouterr().err.replace("\n", "")
    names = Counter(event.get("name") for event in json.loads(path.read_text())["traceEvents"])
    assert {name: names[name] for name in ("forward", "backward")} == {"forward": 2, "backward": 2}
    assert not list((tmp_path / "run").glob("*.tmp*"))
    assert run("train", *arguments[:-1], tmp_path / "other", "--profile", "4") == 2
    assert "--profile 4 needs 8 steps, as 4 go before; after step 0 7 are left" in capsys.readouterr().err


def test_memory_that_does_not_suffice(folders: Folders, tmp_path: Path) -> None:
    """Found at the source: torch is asked for more than there can be."""
    config, out = small_training(folders, "steps=4", "checkpoint_every=2", "accumulate=1"), io.StringIO()

    def build() -> Any:
        loop = showo_loop(config, tmp_path, Console(file=out))
        plain = loop.loss

        def loss(*arguments: Any) -> Any:
            if loop.step == 3:
                torch.empty(2**50)
            return plain(*arguments)

        loop.loss = loss
        return loop

    with pytest.raises(OutOfMemoryError) as raised:
        train(build, tmp_path)
    first, *rest = str(raised.value).split("; ")
    assert first == "out of memory: the system has no 4.19e+06 GiB more for this process"
    assert rest[0].startswith("this process has had ")
    assert rest[1] == "what needs less: recompute=selective, recompute=full"
    assert rest[2].endswith("step-000002")


GPU_TEXT = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 3 has a total capacity of 79.10 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
)


def test_a_gpu_whose_memory_does_not_suffice(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_training(folders, "t2i.batch=8", "lm.batch=4", "mmu.batch=4", "accumulate=1", "parallel=ddp")
    config.device = "cuda"
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 70 * 2**30)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"blocks"))
    with pytest.raises(OutOfMemoryError) as raised, explained_lack_of_memory(tmp_path, config, Ranks(3, 4)):
        raise torch.OutOfMemoryError(GPU_TEXT)
    path = tmp_path / "out-of-memory-3.pickle"
    assert str(raised.value) == (
        "out of memory on the GPU: Tried to allocate 20.00 GiB. GPU 3 has a total capacity of 79.10 GiB of which "
        f"1.20 GiB is free; this process has had 70 GiB at once; what had the memory is in {path} "
        "(docs.pytorch.org/memory_viz); what needs less: accumulate=2, recompute=selective, recompute=full, "
        "parallel=fsdp"
    )
    assert path.read_bytes() == b"blocks"


@pytest.mark.gpu
def test_the_allocator_of_a_gpu_says_what_it_has(folders: Folders, tmp_path: Path) -> None:
    config = small_training(folders)
    config.device = "cuda"
    with (
        pytest.raises(OutOfMemoryError, match="Tried to allocate"),
        explained_lack_of_memory(tmp_path, config, Ranks()),
    ):
        torch.empty(2**50, device="cuda")
    assert (tmp_path / "out-of-memory-0.pickle").stat().st_size > 100


def test_what_needs_less(folders: Folders, pictures: Path) -> None:
    def of(*overrides: str) -> ShowoTraining:
        return small_training(folders, "t2i.batch=12", "lm.batch=6", "mmu.batch=6", "accumulate=2", *overrides)

    assert needs_less(of("recompute=selective"), 1) == ["accumulate=3", "recompute=full"]
    assert needs_less(of("accumulate=6", "parallel=fsdp", "recompute=full"), 2) == ["fsdp.offload=true"]
    assert needs_less(of("parallel=fsdp", "recompute=full", "fsdp.offload=true"), 2) == ["accumulate=3"]
    assert needs_less(tokenizer_training(pictures), 1) == ["a smaller batch"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError("Unable to allocate 8.00 GiB for an array"),
            "out of memory: Unable to allocate 8.00 GiB for an array",
        ),
        (MemoryError(), "out of memory: the system has none left for this process"),
        (RuntimeError("CUDA error: out of memory"), "out of memory on the GPU, which other processes may use"),
    ],
)
def test_any_command_says_that_memory_does_not_suffice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert failure(capsys, "generate") == f"showo: {line}\n"
    assert lack_of_memory(RuntimeError("shapes do not match")) is None
