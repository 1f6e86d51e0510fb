"""What a training processes in its time, counted between two looks at the clock."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from showo.data.tally import Tally
from showo.train.clock import StepClock

SECONDS = "seconds_"  # how the names of the figures begin that say where the time of a step goes


class Meter:
    """Counts what rows hold, and the time of the steps alone.

    waited: seconds, since some beginning, in which a step could not begin since its data were not there.
    clock: of the parts of steps.
    """

    def __init__(self, waited: Callable[[], float], device: torch.device) -> None:
        self._waited = waited
        self.clock = StepClock(device)
        self._restart()

    def add(self, tally: Tally) -> None:
        """A step."""
        self._tally += tally
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation, a checkpoint: time that is no step's."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def take(self) -> dict[str, float]:
        """Rates and shares since the last call, and means of seconds over the steps. Waits for the device."""
        parts = self.clock.take()
        seconds = max(time.monotonic() - self._began, 1e-9)
        tally, waited = self._tally, self._waited() - self._waited_before
        found = {"images_per_second": tally.images / seconds}
        if tally.tokens:
            found["tokens_per_second"] = tally.tokens / seconds
            found["padding_share"] = tally.padding / (tally.tokens + tally.padding)
        if tally.codes:
            found["masking_rate"] = tally.masked / tally.codes
        found["waiting_for_data"] = min(1.0, waited / seconds)
        for name, spent in {"step": seconds, **parts}.items():
            found[f"{SECONDS}{name}"] = spent / max(1, self._steps)
        self._restart()
        return found

    def _restart(self) -> None:
        self._tally, self._steps = Tally(), 0
        self._began, self._waited_before = time.monotonic(), self._waited()


def peak_memory(device: torch.device) -> float:
    """GiB: the most that torch had on a GPU at once; on a CPU, the most that this process had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
