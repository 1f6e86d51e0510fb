"""The engine: a thread of its own that does all computing, for requests that are handed in by any others.

engine = Engine(ShowoPipeline.from_pretrained())
ticket = engine.submit(Draw("red apple", {"seed": 1}))
for event in ticket: ...                                   # see `showo.engine.batching.ticket`
engine.close()

While an engine is open nobody else may use its pipeline, but for what does not compute, such as its sizes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from showo.engine.batching.requests import AnsweringWork, DrawingWork, Request
from showo.engine.batching.ticket import (
    AnswerDone,
    DeadlineError,
    DrawingDone,
    EngineClosedError,
    EngineError,
    Piece,
    Progress,
    QueueFullError,
    RequestCancelledError,
    StepError,
    Ticket,
)
from showo.engine.generate import GenerationStep
from showo.engine.session import Session
from showo.engine.tasks.chat import first_row
from showo.engine.tasks.extend import draw_in_turn
from showo.engine.text_pieces import TextPieces
from showo.errors import UserError, first_line

if TYPE_CHECKING:
    from types import TracebackType

    from showo.engine.pipeline import ShowoPipeline

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What an engine is doing and has done since it was made.

    waiting: requests that have not begun. running: requests that have. rows: rows of the batches that these take now.
    done, refused, cancelled, late, failed: requests, by how they ended: with an answer; at a full queue; cancelled, or
    left by their readers; past their deadline; otherwise.
    pictures, tokens: that were drawn. steps: forward passes of the model, over any number of rows.
    busy_seconds: in which something was computed. cache_bytes: of keys and values that are held now.
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
    cache_bytes: int = 0


class Engine:
    """pipe: belongs to the engine until it is closed.

    max_rows: rows that are computed at a time; a picture with guidance takes two. max_waiting: requests that may wait.
    queue_seconds, total_seconds: how long a request may wait, and take in all, where it is not told otherwise.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        *,
        max_rows: int = 16,
        max_waiting: int = 64,
        queue_seconds: float = 60.0,
        total_seconds: float = 600.0,
    ) -> None:
        if max_rows < 2:
            raise UserError(f"max_rows must be at least 2, since a picture may take two rows, got {max_rows}")
        if max_waiting < 1:
            raise UserError(f"max_waiting must be at least 1, got {max_waiting}")
        self.pipe = pipe
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.queue_seconds, self.total_seconds = queue_seconds, total_seconds
        self._queue: deque[tuple[Ticket, DrawingWork | AnsweringWork]] = deque()
        self._running: list[Ticket] = []
        self._facts = Facts()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="showo engine", daemon=True)
        self._thread.start()

    def submit(
        self, request: Request, *, queue_seconds: float | None = None, total_seconds: float | None = None
    ) -> Ticket:
        """Checks a request and puts it at the end of the queue; never waits for others.

        Raises UserError or TypeError for one that makes no sense, QueueFullError, and EngineClosedError.
        """
        with self._changed:
            self._check_open()
        work = request.prepared(self.pipe)
        ticket = Ticket(
            self.queue_seconds if queue_seconds is None else queue_seconds,
            self.total_seconds if total_seconds is None else total_seconds,
        )
        with self._changed:
            self._check_open()
            if len(self._queue) >= self.max_waiting:
                self._count(refused=1)
                raise QueueFullError(f"{len(self._queue)} requests wait already, and no more than that may")
            self._queue.append((ticket, work))
            self._changed.notify_all()
        return ticket

    def facts(self) -> Facts:
        with self._changed:
            return replace(self._facts, waiting=len(self._queue), running=len(self._running))

    def close(self) -> None:
        """Ends the thread at the next step boundary; requests that are not done raise EngineClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed")

    def _count(self, **more: float) -> None:
        """Adds to the facts; under the lock."""
        self._facts = replace(self._facts, **{name: getattr(self._facts, name) + n for name, n in more.items()})

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    break
                ticket, work = self._queue.popleft()
                self._running.append(ticket)
            begun = time.monotonic()
            try:
                ticket.check_waiting()
                with torch.inference_mode():
                    if isinstance(work, DrawingWork):
                        self._draw(ticket, work)
                    else:
                        self._answer(ticket, work)
                self._end(ticket, None)
            except Exception as error:
                self._end(ticket, error)
            with self._changed:
                self._count(busy_seconds=time.monotonic() - begun)
        for ticket, _ in self._queue:
            ticket.fail(EngineClosedError("the engine was closed"))

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        how = "done"
        if error is not None:
            cancelled, late = isinstance(error, RequestCancelledError), isinstance(error, DeadlineError)
            how = "cancelled" if cancelled else "late" if late else "failed"
            if not isinstance(error, (UserError, EngineError)):
                _log.error("a step failed", exc_info=error)
                error = StepError(f"the engine failed at this request: {first_line(error)}")
            ticket.fail(error)
        with self._changed:
            self._running.remove(ticket)
            self._count(**{how: 1})

    def _check(self, ticket: Ticket) -> None:
        ticket.check()
        self._check_open()

    def _draw(self, ticket: Ticket, work: DrawingWork) -> None:
        drawing, offset = work.drawing, self.pipe.model.config.vocabulary.image_offset
        grid, texts = drawing.grid, len(drawing.texts)

        def report(first: int, step: GenerationStep) -> None:
            self._check(ticket)
            codes, masked = step.codes.view(grid).cpu(), step.masked.view(grid).cpu()
            picture = self.pipe.decode(step.codes, grid)[0] if work.previews else None
            ticket.put(Progress(first * step.steps + step.step, texts * step.steps, codes, masked, picture))
            with self._changed:
                self._count(steps=1)

        drawing._asked = replace(drawing._asked, callback=report)
        codes = draw_in_turn(
            work.fill(),
            lambda number, canvas: (
                drawing.draw(slice(number, number + 1), canvas.reshape(1, -1)).view(canvas.shape) + offset
            ),
        ).cpu()
        codes = codes - offset
        (picture,) = self.pipe.decode(codes.reshape(1, -1), work.grid)
        with self._changed:
            self._count(pictures=1)
        ticket.put(DrawingDone(picture if work.finish is None else work.finish(picture), codes))

    def _answer(self, ticket: Ticket, work: AnsweringWork) -> None:
        session, pieces, request = Session(self.pipe.model, 1), TextPieces(self.pipe.text_tokenizer), work.request
        session.append(*first_row(self.pipe, work.look(), work.text))
        for (id_,) in session.generate_text(
            eot=self.pipe.prompting.eot,
            max_new_tokens=work.most,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
        ):
            self._check(ticket)
            assert id_ is not None
            if piece := pieces.add(id_):
                ticket.put(Piece(piece))
            with self._changed:
                self._count(steps=1, tokens=1)
        if piece := pieces.end():
            ticket.put(Piece(piece))
        finished = len(pieces.ids) < work.most
        ticket.put(AnswerDone(pieces.text, finished, work.length, len(pieces.ids) + finished))
