"""What a request gets back: events, one after the other, for a thread that waits or for an asyncio loop.

    for event in ticket: ...           # in a thread
    async for event in ticket: ...     # in an asyncio loop, which is never blocked
    last = ticket.result()             # or: last = await ticket.finished()

Both end after the last event, `DrawingDone` or `AnswerDone`, or raise what the request came to: UserError, where what
was asked for turns out to be impossible, or an EngineError. A reader that leaves the loop before its end cancels the
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from PIL import Image
from torch import Tensor


class EngineError(RuntimeError):
    """A request that was not answered, for a reason that does not lie in what it asked for."""


class QueueFullError(EngineError):
    """As many requests wait as may wait."""


class DeadlineError(EngineError):
    """A request has taken more time than it was given."""


class RequestCancelledError(EngineError):
    """Nobody wants the answer any more."""


class EngineClosedError(EngineError):
    """The engine was closed before the request was answered."""


class EngineFailedError(EngineError):
    """The engine's thread has ended by an error, which the message tells: this engine answers nothing any more."""


class EngineStuckError(EngineError):
    """A step of the engine takes longer than it may. Where that step ends after all, the engine goes on."""


class StepError(EngineError):
    """A step of the engine failed, a bug or a lack of memory: the message says how. The requests in it are lost."""


@dataclass(frozen=True)
class Progress:
    """A step of a picture is done.

    step: from 0, of `steps`; of an extended picture, steps are counted through all its windows.
    codes, masked: int64 and bool [height, width] on the CPU, of the canvas that is drawn on: codes as of now (0 where
        nothing was drawn yet), and the places that will be chosen again. picture: the decoded codes, where previews
        are wanted.

    A reader that is slower than the steps misses some of them: only the newest one is kept.
    """

    step: int
    steps: int
    codes: Tensor
    masked: Tensor
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Piece:
    """More of an answer."""

    text: str


@dataclass(frozen=True)
class DrawingDone:
    """The picture, and its codes, int64 [height, width] on the CPU."""

    picture: Image.Image
    codes: Tensor


@dataclass(frozen=True)
class AnswerDone:
    """The whole answer.

    finished: whether the model ended it; otherwise max_new_tokens or the model's positions did.
    prompt_tokens: places of what was read, pictures included. tokens: ids that were drawn, the end included.
    """

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int


Event = Progress | Piece | DrawingDone | AnswerDone
Ending = DrawingDone | AnswerDone | Exception  # the last event, or what is raised in its place
LAST = (DrawingDone, AnswerDone)
_GRACE_SECONDS = 5.0  # for the engine to end a late request, and count it, before its reader goes


class Ticket:
    """The reader's end of a request; `Engine.submit` makes it. One reader reads a ticket, once.

    queue_until, until: when the request must have begun, and be done, as of time.monotonic(). The engine ends a request
    that is late at the end of a step; where no step ends, the reader goes by itself, some seconds later.
    """

    def __init__(self, queue_seconds: float, total_seconds: float) -> None:
        now = time.monotonic()
        self.queue_until, self.until = now + queue_seconds, now + total_seconds
        self._unread: deque[Event] = deque()
        self._error: Exception | None = None
        self._over = False
        self._cancelled = False
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # ---- the reader's side -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Frees the request's place at the next step boundary. Nothing happens where it is over already."""
        with self._changed:
            self._cancelled = True

    def __iter__(self) -> Iterator[Event]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._unread or self._over, self._patience())
                    event = self._next()
                if event is None:
                    return
                yield event
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        try:
            while True:
                with self._changed:
                    patience = self._patience()
                    ready = bool(self._unread) or self._over or patience == 0
                    if ready:
                        event = self._next()
                    else:
                        future: asyncio.Future[None] = loop.create_future()
                        self._waiting.append((loop, future))
                if not ready:
                    timer = loop.call_later(patience, _settle, future)  # asyncio.wait_for may lose a cancellation
                    try:
                        await future
                    finally:
                        timer.cancel()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            self.cancel()

    def result(self) -> DrawingDone | AnswerDone:
        """Waits for the last event."""
        return _last(list(self)[-1])

    async def finished(self) -> DrawingDone | AnswerDone:
        """`result` for an asyncio loop."""
        return _last([event async for event in self][-1])

    def _patience(self) -> float:
        """Seconds for which a reader still waits for the next event."""
        return min(max(0.0, self.until + _GRACE_SECONDS - time.monotonic()), threading.TIMEOUT_MAX)

    def _next(self) -> Event | None:
        """None after the last event."""
        if self._unread:
            return self._unread.popleft()
        if self._error is not None:
            raise self._error
        if not self._over:
            raise self._late()
        return None

    # ---- the engine's side -----------------------------------------------------------------------------------------

    def reason_to_end(self) -> EngineError | None:
        """Why the request should go on no more, if there is a reason."""
        if time.monotonic() > self.until:  # looked at first: a reader that went for this reason has cancelled too
            return self._late()
        if self._cancelled:
            return RequestCancelledError("the request was cancelled")
        return None

    def _late(self) -> DeadlineError:
        return DeadlineError("the request has taken all its time and is not done")

    def reason_not_to_begin(self) -> EngineError | None:
        """The same for a request that is still to begin."""
        if time.monotonic() > self.queue_until:
            return self.reason_to_end() or DeadlineError(
                "the request has waited for all the time that it may wait, and has not begun"
            )
        return self.reason_to_end()

    def put(self, event: Event) -> None:
        with self._changed:
            if self._over:  # closed by another thread, while a step was stuck
                return
            if isinstance(event, Progress) and self._unread and isinstance(self._unread[-1], Progress):
                self._unread.pop()  # so that what nobody reads takes no memory
            self._unread.append(event)
            self._over = isinstance(event, LAST)
            self._wake()

    def fail(self, error: Exception) -> None:
        with self._changed:
            if not self._over:
                self._error, self._over = error, True
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for loop, future in self._waiting:
            with contextlib.suppress(RuntimeError):  # a loop that is closed has no readers any more
                loop.call_soon_threadsafe(_settle, future)
        self._waiting.clear()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _last(event: Event) -> DrawingDone | AnswerDone:
    assert isinstance(event, LAST)
    return event
