"""A training that memory does not suffice for: what it has asked for, what had the memory, and what needs less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from showo.errors import OutOfMemoryError, OutputError
from showo.files import atomic_path
from showo.memory import lack_of_memory
from showo.train.config import LoopConfig, ShowoTraining
from showo.train.config.showo import RECOMPUTE
from showo.train.meter import peak_memory
from showo.train.ranks import Ranks


@contextmanager
def explained_lack_of_memory(run: Path, config: LoopConfig, ranks: Ranks) -> Iterator[None]:
    """OutOfMemoryError in place of what torch, numpy and Python say. On a GPU, RUN/out-of-memory-RANK.pickle then holds
    the state of torch's allocator.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = lack_of_memory(error)
        if reason is None:
            raise
        device = torch.device(config.device)
        facts = [f"{reason}; this process has had {peak_memory(device):.3g} GiB at once"]
        if device.type == "cuda":
            facts.append(_snapshot(run / f"out-of-memory-{ranks.rank}.pickle"))
        if less := needs_less(config, ranks.count):
            facts.append("what needs less: " + ", ".join(less))
        raise OutOfMemoryError("; ".join(facts)) from error


def needs_less(config: LoopConfig, ranks: int) -> list[str]:
    """Settings with which a training needs less memory; of Show-o the same training, the cheapest ones first."""
    if not isinstance(config, ShowoTraining):
        return ["a smaller batch"]  # accumulate changes its loss, which compares the pictures of a micro-batch
    rows = [stream.batch for stream in config.streams.values()]
    parts = (n for n in range(config.accumulate + 1, min(rows) + 1) if not any(count % n for count in rows))
    found = [f"accumulate={more}" for more in islice(parts, 1)]
    found += [f"recompute={how}" for how in RECOMPUTE[RECOMPUTE.index(config.recompute) + 1 :]]
    if config.parallel == "ddp" and ranks > 1:
        found.append("parallel=fsdp")
    if config.parallel == "fsdp" and not config.fsdp.offload:
        found.append("fsdp.offload=true")
    return found


def _snapshot(path: Path) -> str:
    """Writes what has the GPU's memory, and says so; a file that cannot be written hides nothing of the matter."""
    try:
        with atomic_path(path) as temporary:
            torch.cuda.memory._dump_snapshot(str(temporary))
    except OutputError as error:
        return str(error)
    return f"what had the memory is in {path} (docs.pytorch.org/memory_viz)"
