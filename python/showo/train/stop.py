"""Ctrl-C, and the SIGTERM of a scheduler that takes the machine back, end training between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from showo.launch import Launch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A training has ended as it was asked to, and is saved; unless it is caught, the program ends, with code 0."""

    def __init__(self) -> None:
        super().__init__(0)


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a request, so that no step is left half done.

    The request is true once a signal has come. A second signal does at once what it would have done without this
    class; but not in a process of torchrun, which passes on the signals that it gets: one that is sent to all
    processes, as a terminal and schedulers do, then comes twice. (torchrun itself ends what is there after its
    --shutdown-timeout, 30 seconds.) A signal that was ignored on entry stays ignored, as a shell wants for jobs in the
    background. Python handles signals in its main thread only: in another thread this class does nothing.

    silent: nothing is said when a signal comes.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.signal: int | None = None
        self._often = Launch.of_this_process().by_torchrun
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heeded = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
            self._handlers = {s: signal.signal(s, self._remember) for s in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not Stopped or not self._often:  # else the second signal may come while the process ends
            self._restore()

    def __bool__(self) -> bool:
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = number
        if not self._often:
            self._restore()
        if not self.silent:  # print is not safe in a handler
            at_once = b"" if self._often else b"; again to stop at once"
            os.write(2, b"\nstopping after this step, with a checkpoint" + at_once + b"\n")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
