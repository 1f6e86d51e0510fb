"""The engine: a thread of its own that does all computing, for requests that are handed in by any others.

engine = Engine(ShowoPipeline.from_pretrained())
ticket = engine.submit(Draw("red apple", {"seed": 1}))
for event in ticket: ...                                   # see `showo.engine.batching.ticket`
engine.close()

While an engine is open nobody else may use its pipeline, but for what does not compute, such as its sizes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from showo.engine.batching.answering import AnswerBatch, OpenAnswer
from showo.engine.batching.drawing import OpenPicture, PictureBatch
from showo.engine.batching.requests import AnsweringWork, DrawingWork, Request
from showo.engine.batching.shared_rows import Batch
from showo.engine.batching.ticket import (
    DeadlineError,
    DrawingDone,
    Ending,
    EngineClosedError,
    EngineError,
    EngineFailedError,
    EngineStuckError,
    QueueFullError,
    RequestCancelledError,
    StepError,
    Ticket,
)
from showo.errors import UserError, first_line

if TYPE_CHECKING:
    from types import TracebackType

    from showo.engine.pipeline import ShowoPipeline

_log = logging.getLogger(__name__)
Work = DrawingWork | AnsweringWork
_LOOK_SECONDS = 1.0  # how often `close` looks whether the step that it waits for is stuck


def default_rows(device: torch.device) -> int:
    """Rows of pictures to compute at a time. On a CPU many pictures together are hardly faster than one by one,
    and all their readers wait for the last of them (docs/serving.md has the figures).
    """
    return 4 if device.type == "cpu" else 16


@dataclass(frozen=True)
class Facts:
    """What an engine is doing and has done since it was made.

    waiting: requests that have not begun. running: requests that have. rows: rows of the batches that these take now.
    done, refused, cancelled, late, failed: requests, by how they ended: with an answer; at a full queue; cancelled, or
    left by their readers; past their deadline; otherwise.
    pictures, tokens: that were drawn. steps: forward passes of the model, over any number of rows.
    busy_seconds: in which something was computed. running_step_seconds: since the step that runs now began; 0 between
    steps. cache_bytes: of keys and values that are held now, and by CUDA graphs from their capture on.
    """

    waiting: int = 0
    running: int = 0
    rows: int = 0
    done: int = 0
    refused: int = 0
    cancelled: int = 0
    late: int = 0
    failed: int = 0
    pictures: int = 0
    tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    running_step_seconds: float = 0.0
    cache_bytes: int = 0


class Engine:
    """pipe: belongs to the engine until it is closed.

    max_rows: rows of pictures that are computed at a time; a picture with guidance takes two, and one that takes more
        than there are, such as composed prompts, is drawn alone. None: what suits the device (`default_rows`).
    max_answers: answers that are given at a time, beside the pictures. max_waiting: requests that may wait.
    queue_seconds, total_seconds: how long a request may wait, and take in all, where it is not told otherwise.
    step_seconds: after which a step that has not ended is stuck, and nothing is begun any more until it ends. A first
        step may have to be compiled, or captured.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        *,
        max_rows: int | None = None,
        max_answers: int = 16,
        max_waiting: int = 64,
        queue_seconds: float = 300.0,
        total_seconds: float = 600.0,
        step_seconds: float = 600.0,
    ) -> None:
        self.max_rows = default_rows(pipe.model.device) if max_rows is None else max_rows
        self.max_answers, self.max_waiting = max_answers, max_waiting
        for name in ("max_rows", "max_answers", "max_waiting"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not step_seconds > 0:
            raise UserError(f"step_seconds must be above 0, got {step_seconds}")
        self.pipe = pipe
        self.queue_seconds, self.total_seconds, self.step_seconds = queue_seconds, total_seconds, step_seconds
        self._queue: deque[tuple[Ticket, Work]] = deque()
        self._running: dict[Ticket, Work] = {}
        self._batches: list[Batch[Any]] = []
        self._facts = Facts()
        self._step_begun: float | None = None  # as of time.monotonic(); None between steps
        self._closed = False
        self._failure: str | None = None  # why the thread has ended, where it was not told to
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="showo engine", daemon=True)
        self._thread.start()

    def submit(
        self, request: Request, *, queue_seconds: float | None = None, total_seconds: float | None = None
    ) -> Ticket:
        """Checks a request and puts it at the end of the queue; never waits for others.

        Raises UserError or TypeError for one that makes no sense, QueueFullError, and what `check_open` raises.
        """
        self.check_open()
        work = request.prepared(self.pipe)
        ticket = Ticket(
            self.queue_seconds if queue_seconds is None else queue_seconds,
            self.total_seconds if total_seconds is None else total_seconds,
        )
        with self._changed:
            self.check_open()
            if len(self._queue) >= self.max_waiting:
                self._count(refused=1)
                raise QueueFullError(f"{len(self._queue)} requests wait already, and no more than that may")
            self._queue.append((ticket, work))
            self._changed.notify_all()
        return ticket

    def facts(self) -> Facts:
        with self._changed:
            waiting, running = len(self._queue), len(self._running)
            return replace(
                self._facts, waiting=waiting, running=running, running_step_seconds=self._running_step_seconds()
            )

    def close(self) -> None:
        """Ends the thread at the next step boundary; requests that are not done raise EngineClosedError.

        A thread whose step is stuck, or becomes so, is left behind: it ends when its step does, or with the process.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        while self._thread.is_alive() and self._running_step_seconds() <= self.step_seconds:
            self._thread.join(_LOOK_SECONDS)
        if self._thread.is_alive():
            self._abandon()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_open(self) -> None:
        """Raises EngineClosedError, EngineFailedError where the thread has ended by itself, and EngineStuckError."""
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            if self._failure is not None:
                raise EngineFailedError(self._failure)
            seconds = self._running_step_seconds()
            if seconds > self.step_seconds:
                raise EngineStuckError(
                    f"a step of the engine has been running for {seconds:.0f} seconds, longer than the "
                    f"{self.step_seconds:g} that it may; nothing is begun before it ends"
                )

    def _running_step_seconds(self) -> float:
        """Seconds since the step that runs now began; 0 between steps."""
        begun = self._step_begun  # read once: the engine's thread sets it at any time
        return 0.0 if begun is None else time.monotonic() - begun

    def _count(self, **more: float) -> None:
        """Adds to the facts; under the lock."""
        self._facts = replace(self._facts, **{name: getattr(self._facts, name) + n for name, n in more.items()})

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Errors of requests end these alone. Any other one ends the thread, and nobody must wait for it then."""
        try:
            self._take_turns()
        except BaseException as error:
            self._failure = f"the engine's thread has ended: {first_line(error)}"
            _log.critical(self._failure, exc_info=error)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Ends all requests that are not done."""
        with self._changed:
            closed = self._failure is None
            reason = EngineClosedError("the engine was closed") if closed else EngineFailedError(self._failure)
            for ticket in [*self._running, *(ticket for ticket, _ in self._queue)]:
                ticket.fail(reason)
            self._queue.clear()
            self._running.clear()
            self._batches.clear()

    @torch.inference_mode()
    def _take_turns(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._running or self._closed)
                if self._closed:
                    return
            begun = time.monotonic()
            self._turn()
            with self._changed:
                self._measure()
                self._count(busy_seconds=time.monotonic() - begun)

    def _turn(self) -> None:
        """A step of everything. Between two turns requests come and go."""
        self._leave()
        self._join()
        for batch in self._batches:
            if not self._closed:
                self._step(batch)
        self._batches = [batch for batch in self._batches if batch.rows.owners]

    def _leave(self) -> None:
        """Ends what nobody wants any more, or what is too late, whether it has begun or not."""
        with self._changed:
            gone = {ticket: error for ticket, _ in self._queue if (error := ticket.reason_not_to_begin())}
            self._queue = deque(item for item in self._queue if item[0] not in gone)
        for ticket, error in gone.items():
            self._end(ticket, error)
        for batch in self._batches:
            for owner in batch.rows.owners:
                if error := owner.ticket.reason_to_end():
                    batch.drop(owner)
                    self._end(owner.ticket, error)

    def _join(self) -> None:
        """Begins requests as long as there are rows for them."""
        while not self._closed:
            with self._changed:
                first = self._first_that_fits()
                if first is None:
                    return
                self._queue.remove(first)
                ticket, work = first
                self._running[ticket] = work
            try:
                with self._timed():
                    ending = self._begin(ticket, work)
            except Exception as error:
                self._end(ticket, error)
            else:
                if ending is not None:
                    self._end(ticket, ending)

    def _first_that_fits(self) -> tuple[Ticket, Work] | None:
        """Pictures begin in the order in which they came, and so do answers, which no picture holds up."""
        for kind, most in ((AnsweringWork, self.max_answers), (DrawingWork, self.max_rows)):
            first = next((item for item in self._queue if isinstance(item[1], kind)), None)
            taken = sum(work.rows for work in self._running.values() if isinstance(work, kind))
            if first is not None and (taken == 0 or taken + first[1].rows <= most):
                return first
        return None

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Around what computes: a step, or what is read before a request's first one."""
        self._step_begun = time.monotonic()
        try:
            yield
        finally:
            self._step_begun = None

    def _begin(self, ticket: Ticket, work: Work) -> Ending | None:
        """How the request ended, where that is all there was to do."""
        return (
            self._begin_drawing(ticket, work) if isinstance(work, DrawingWork) else self._begin_answering(ticket, work)
        )

    def _begin_drawing(self, ticket: Ticket, work: DrawingWork) -> Ending | None:
        picture = OpenPicture(self.pipe, ticket, work)
        if picture.last is not None:  # nothing was to be drawn
            return picture.last
        places = picture.canvas.ids.shape[1]
        batches = (batch for batch in self._batches if isinstance(batch, PictureBatch) and batch.places == places)
        batch = next(batches, None) or PictureBatch(places)
        batch.add(picture)
        self._keep(batch)
        return None

    def _begin_answering(self, ticket: Ticket, work: AnsweringWork) -> Ending | None:
        answer = OpenAnswer(self.pipe, ticket, work)
        batches = (batch for batch in self._batches if isinstance(batch, AnswerBatch) and not batch.full)
        batch = next(batches, None) or AnswerBatch()
        ended = batch.add(answer)
        with self._changed:
            self._count(steps=1, tokens=1)
        if ended is None:
            self._keep(batch)
        return ended

    def _keep(self, batch: Batch[Any]) -> None:
        if batch not in self._batches:
            self._batches.append(batch)

    def _step(self, batch: Batch[Any]) -> None:
        owners = batch.rows.owners
        if not owners:
            return
        try:
            with self._timed():
                ended = batch.step()
        except Exception as error:
            ended = dict.fromkeys(owners, error)
        with self._changed:
            self._count(steps=1, tokens=len(owners) if isinstance(batch, AnswerBatch) else 0)
        for owner, ending in ended.items():
            batch.drop(owner)
            self._end(owner.ticket, ending)

    def _end(self, ticket: Ticket, ending: Ending) -> None:
        """Tells a request's reader how it ended. It counts before it is told."""
        how = "done"
        if isinstance(ending, Exception):
            cancelled, late = isinstance(ending, RequestCancelledError), isinstance(ending, DeadlineError)
            how = "cancelled" if cancelled else "late" if late else "failed"
            if not isinstance(ending, (UserError, EngineError)):
                _log.error("a step failed", exc_info=ending)
                ending = StepError(f"the engine failed at this request: {first_line(ending)}")
        with self._changed:
            self._running.pop(ticket, None)
            self._count(**{how: 1}, pictures=isinstance(ending, DrawingDone))
            self._measure()
        if isinstance(ending, Exception):
            ticket.fail(ending)
        else:
            ticket.put(ending)

    def _measure(self) -> None:
        """What is held now, for the facts; under the lock."""
        rows = sum(batch.rows.count() for batch in self._batches)
        held = sum(batch.rows.cache_bytes() for batch in self._batches)
        if (graphs := self.pipe.model.graphs) is not None:
            held += graphs.cache_bytes
        self._facts = replace(self._facts, rows=rows, cache_bytes=held)
