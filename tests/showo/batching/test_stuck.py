"""A step that hangs: the engine says so, begins nothing, keeps nobody, and goes on when the step ends after all."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from showo.engine.batching import (
    DeadlineError,
    Draw,
    DrawingDone,
    Engine,
    EngineClosedError,
    EngineStuckError,
    Ticket,
)
from showo.engine.pipeline import ShowoPipeline
from showo.errors import UserError
from tests.showo.batching.requests import SHORT, begun, held, planted, works


def hung(engine: Engine, request: Draw = SHORT) -> Ticket:
    """A ticket of a request whose first forward pass, which hangs, has begun."""
    ticket = engine.submit(request)
    while engine.facts().running_step_seconds == 0:
        time.sleep(0.001)
    return ticket


def hanging(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, ...]:
    """From the first event on forward passes set the second one, and hang until the third."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang(hidden: Any) -> Any:
        hangs.set()
        go_on.wait(60)
        return hidden

    return planted(pipe, monkeypatch, hang), hangs, go_on


@pytest.mark.parametrize("first", [True, False], ids=["while a prompt is read", "in a step"])
def test_nothing_is_begun(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    now, hangs, go_on = hanging(pipe, monkeypatch)
    with Engine(pipe) as engine:
        if first:
            now.set()
            reader = iter(engine.submit(SHORT))
        else:
            _, reader = begun(engine, Draw("a", {"steps": 99}))
            now.set()
        assert hangs.wait(60)
        engine.check_open()  # for 600 seconds nothing is wrong
        engine.step_seconds = 0.0
        for call in (engine.check_open, lambda: engine.submit(SHORT)):
            with pytest.raises(EngineStuckError, match=r"has been running for \d+ seconds, longer than the 0 that"):
                call()
        assert engine.facts().waiting == 0
        go_on.set()
        assert isinstance(list(reader)[-1], DrawingDone)
        engine.check_open()
        assert engine.facts().running_step_seconds == 0
        engine.step_seconds = 600.0
        works(engine)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_its_readers_go_when_their_time_is_over(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    monkeypatch.setattr("showo.engine.batching.ticket._GRACE_SECONDS", 0.0)
    go_on = held(pipe, monkeypatch)
    with Engine(pipe) as engine:
        ticket = engine.submit(SHORT, total_seconds=0.05)
        with pytest.raises(DeadlineError, match="not done"):
            asyncio.run(ticket.finished()) if asynchronous else ticket.result()
        go_on.set()
        works(engine)
        facts = engine.facts()
        assert (facts.late, facts.cancelled, facts.done) == (1, 0, 1)


def test_closing_leaves_it_behind(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("showo.engine.batching.engine._LOOK_SECONDS", 0.01)
    now, hangs, go_on = hanging(pipe, monkeypatch)
    engine = Engine(pipe)
    running, reader = begun(engine)
    now.set()
    assert hangs.wait(60)
    waiting = engine.submit(SHORT)
    engine.step_seconds = 0.0
    engine.close()
    for each in (reader, waiting):
        with pytest.raises(EngineClosedError):
            list(each)
    assert engine._thread.is_alive()
    go_on.set()
    engine._thread.join(60)
    assert not engine._thread.is_alive()
    assert not running._unread  # what the step gave after all is nobody's
    assert (engine.facts().running, engine.facts().waiting) == (0, 0)


def test_closing_waits_for_a_step_that_is_not_stuck(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("showo.engine.batching.engine._LOOK_SECONDS", 0.001)
    go_on = held(pipe, monkeypatch)
    engine = Engine(pipe)
    hung(engine)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert not engine._thread.is_alive()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_that_cannot_be(pipe: ShowoPipeline, seconds: float) -> None:
    with pytest.raises(UserError, match="step_seconds must be above 0"):
        Engine(pipe, step_seconds=seconds)
