"""Which requests begin and end when: limits, deadlines, and readers that leave."""

from __future__ import annotations

import asyncio
import time

import pytest

from showo.engine.batching import (
    Answer,
    AnswerDone,
    DeadlineError,
    Draw,
    DrawingDone,
    Engine,
    EngineClosedError,
    QueueFullError,
    RequestCancelledError,
)
from showo.engine.pipeline import ShowoPipeline
from showo.errors import UserError
from tests.showo.batching.requests import LONG, SHORT, begun, noise, works


@pytest.mark.parametrize("leave", ["cancel", "break", "asyncio"])
def test_cancelled(engine: Engine, leave: str) -> None:
    if leave == "cancel":
        ticket, events = begun(engine)
        ticket.cancel()
        with pytest.raises(RequestCancelledError):
            list(events)
    elif leave == "break":
        for _ in engine.submit(LONG):
            break
    else:

        async def read() -> None:
            task = asyncio.create_task(engine.submit(LONG).finished())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(read())
    works(engine)
    assert (engine.facts().cancelled, engine.facts().done) == (1, 1)


def test_cancelled_while_waiting(pipe: ShowoPipeline) -> None:
    with Engine(pipe, max_rows=2) as engine:
        first, events = begun(engine)
        second = engine.submit(SHORT)
        second.cancel()
        with pytest.raises(RequestCancelledError):
            second.result()
        assert (engine.facts().running, engine.facts().done) == (1, 0)  # the first one goes on
        next(events)
        first.cancel()


def test_deadlines(pipe: ShowoPipeline) -> None:
    with Engine(pipe, max_rows=2) as engine:
        with pytest.raises(DeadlineError, match="not done"):
            engine.submit(LONG, total_seconds=0.02).result()
        first, events = begun(engine)
        with pytest.raises(DeadlineError, match="not begun"):
            engine.submit(SHORT, queue_seconds=0.02).result()
        next(events)
        first.cancel()
        works(engine)
        assert (engine.facts().late, engine.facts().done, engine.facts().cancelled) == (2, 1, 1)


def test_full_queue(pipe: ShowoPipeline) -> None:
    with Engine(pipe, max_rows=2, max_waiting=2) as engine:
        first, _ = begun(engine)
        waiting = [engine.submit(SHORT), engine.submit(SHORT)]
        with pytest.raises(QueueFullError, match="2 requests"):
            engine.submit(SHORT)
        facts = engine.facts()
        assert (facts.running, facts.waiting, facts.refused) == (1, 2, 1)
        first.cancel()
        assert all(isinstance(ticket.result(), DrawingDone) for ticket in waiting)


def test_closed_while_running(pipe: ShowoPipeline) -> None:
    engine = Engine(pipe, max_rows=2)
    _, running = begun(engine)
    waiting = engine.submit(SHORT)
    engine.close()
    with pytest.raises(EngineClosedError):
        list(running)
    with pytest.raises(EngineClosedError):
        waiting.result()
    with pytest.raises(EngineClosedError):
        engine.submit(SHORT)
    assert not engine._thread.is_alive()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Draw("a", {"steps": 0}), "steps"),
        (Draw("a", {"steps": 1001}), "steps"),
        (Draw("x" * 50), "50 tokens"),
        (Draw("x" * 30_000), "characters"),
        (Draw("a", {"seed": [1, 2]}), "seed"),
        (Draw("a", {"also": [("x" * 50, 1.0)]}), "also has 50 tokens"),
        (Draw("a", {"also": [("x", 1.0)] * 8}), "at most 8"),
        (Draw("a", {"batch": 4}), "batch"),
        (Answer([noise(1)], " "), "empty"),
        (Answer([noise(1)] * 9, "a"), "positions"),
        (Answer([noise(1)], None, [("a", "b")]), "first turn"),
    ],
)
def test_refused_at_once(pipe: ShowoPipeline, request_: Draw | Answer, message: str) -> None:
    with Engine(pipe) as engine, pytest.raises(UserError, match=message):
        engine.submit(request_)


def test_pictures_hold_up_no_answers(pipe: ShowoPipeline) -> None:
    with Engine(pipe, max_rows=2, max_answers=1) as engine:
        first, _ = begun(engine)
        engine.submit(SHORT)
        answers = [engine.submit(Answer([noise(n)], max_new_tokens=3)) for n in range(2)]
        for number, ticket in enumerate(answers):
            assert isinstance(ticket.result(), AnswerDone), number
        facts = engine.facts()
        assert (facts.running, facts.waiting, facts.done) == (1, 1, 2)
        first.cancel()


def test_more_rows_than_there_are(pipe: ShowoPipeline) -> None:
    """What takes so many is computed alone, in its turn."""
    wide = Draw("a", {"steps": 2, "also": [("b", 2.0), ("c", -1.0)]})
    with Engine(pipe, max_rows=3) as engine:
        first, _ = begun(engine)
        waiting = [engine.submit(wide), engine.submit(Draw("a", {"steps": 2, "guidance": 0.0}))]
        time.sleep(0.05)
        facts = engine.facts()
        assert (facts.running, facts.waiting) == (1, 2)
        first.cancel()
        assert all(isinstance(ticket.result(), DrawingDone) for ticket in waiting)
    for name in ("max_rows", "max_answers", "max_waiting"):
        with pytest.raises(UserError, match=f"{name} must be at least 1"):
            Engine(pipe, **{name: 0})
