"""Ctrl-C, and the SIGTERM of a scheduler that takes the machine back, end training between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a request, so that no step is left half done.

    The request is true once a signal has come; `act` then ends the program as that signal asks. A second signal does
    at once what it would have done without this class. A signal that was ignored on entry stays ignored, as a shell
    wants for jobs in the background. Python handles signals in its main thread only: in another thread this class
    does nothing.

    silent: nothing is said when a signal comes.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.signal: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heeded = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
            self._handlers = {s: signal.signal(s, self._remember) for s in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if not self.silent:  # print is not safe in a handler
            os.write(2, b"\nstopping after this step, with a checkpoint; again to stop at once\n")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def act(self) -> None:
        """Raises what the remembered signal asks for: KeyboardInterrupt, or SystemExit with 128 + its number."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)
