"""A rank that hangs ends, after it has said where all of its threads are: torchrun ends the others, or begins anew.

Ranks wait for each other, so where one hangs all do, for as long as the network's libraries have patience, and in vain.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from types import TracebackType

_GRACE = 10  # seconds that the thread below has to speak before faulthandler does, whose lines have no number
_STDERR = 2


class Watchdog:
    """Context manager within which every `expect` has to be followed by another one in time.

    A thread watches the time, by a clock that nobody sets. Where that thread cannot run, as a library waits with
    Python's lock in its hand, Python's faulthandler, which needs no lock, writes the stacks a little later.

    rank: the number that each line begins with.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._expected = ("", 0.0, float("inf"))  # what, within how many seconds, until when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def expect(self, what: str, seconds: float) -> None:
        """Ends the process, with code 1, unless this is called again, or the watchdog left, within so many seconds.

        what: what the process is about to do.
        """
        self._expected = (what, seconds, time.monotonic() + seconds)
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            what, seconds, until = self._expected
            if time.monotonic() > until:
                os.write(_STDERR, self._report(what, seconds).encode(errors="backslashreplace"))
                os._exit(1)

    def _report(self, what: str, seconds: float) -> str:
        """One text, as several ranks write at the same time."""
        lines = [f"{what} has not ended within {seconds:g} seconds; this rank ends; its threads are here:"]
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for number, frame in sys._current_frames().items():
            if number != threading.get_ident():
                lines.append(f"thread {names.get(number, number)}")
                lines += "".join(traceback.format_stack(frame)).splitlines()
        return "".join(f"showo: rank {self.rank}: {line}\n" for line in lines)
