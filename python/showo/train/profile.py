"""`showo train --profile N`: what happens in some steps, for chrome://tracing, ui.perfetto.dev or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from showo.errors import UserError
from showo.files import atomic_path

# The first steps load kernels, compile blocks and fill caches; then the profiler itself has one to begin in.
_WARM_UP, _BEGINNING = 3, 1


@contextmanager
def profiled_steps(
    count: int, run: Path, step: int, left: int, device: torch.device, tell: Callable[[str], object]
) -> Iterator[Callable[[], object]]:
    """Gives what is to be called after every step. When `count` steps after the first ones are done, or the training
    ends within them, RUN/profile-N.json is written, N being the first of them, and `tell` gets a line about it.

    step: so many are done. left: and so many are still to be done.

    Raises:
        UserError: they are too few.
        OutputError: the file cannot be written.
    """
    before = _WARM_UP + _BEGINNING
    if left < before + count:
        raise UserError(
            f"--profile {count} needs {before + count} steps, as {before} go before; after step {step} {left} are left"
        )
    path = run / f"profile-{step + before + 1:06d}.json"

    def write(found: profile) -> None:
        with atomic_path(path) as temporary:
            found.export_chrome_trace(str(temporary))
        tell(f"a profile of {count} steps after step {step + before} is {path}: chrome://tracing or ui.perfetto.dev")

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        # Which lines of the program had asked for what is there, for the file that a lack of memory would leave.
        torch.cuda.memory._record_memory_history(max_entries=100_000)
    plan = schedule(wait=_WARM_UP, warmup=_BEGINNING, active=count, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
