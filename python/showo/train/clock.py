"""How long the parts of a training's steps take, measured without waiting for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function


class StepClock:
    """Adds up the seconds of named parts until somebody takes them. A profile of torch's shows the same names.

    device: where the parts compute. On a GPU a part is measured there, between two events that are put into the queue
    of its work, so it holds what the device does and the gaps in which the device has nothing to do.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Something that the device does."""
        if self.device.type != "cuda":
            with self.host_part(name):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self.device)
        with record_function(name):
            begin.record(stream)
            yield
            end.record(stream)
        self._events.append((name, begin, end))

    @contextmanager
    def host_part(self, name: str) -> Iterator[None]:
        """Something that the program itself does, or waits for."""
        began = time.monotonic()
        with record_function(name):
            yield
        self._add(name, time.monotonic() - began)

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call. Waits until the device has done all parts."""
        for name, begin, end in self._events:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1e3)
        taken, self._seconds, self._events = self._seconds, {}, []
        return taken

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
