"""What goes wrong in an engine is told to those whom it concerns, and nothing stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from showo.engine.batching import Answer, Draw, Engine, EngineFailedError, Extend, Inpaint, StepError, Vary
from showo.engine.pipeline import ShowoPipeline
from showo.errors import NotFiniteError
from tests.showo.batching.requests import SHORT, begun, kill, noise, planted, works


@pytest.mark.parametrize("kind", ["inpaint", "vary", "extend", "ask", "ask with CLIP"])
def test_what_waits_keeps_no_large_picture(pipe: ShowoPipeline, kind: str) -> None:
    large = (401, 299)
    requests: dict[str, Callable[[Image.Image], Draw | Answer]] = {
        "inpaint": lambda picture: Inpaint("a", picture=picture, mask=(1, 2, 300, 200)),
        "vary": lambda picture: Vary("a", picture=picture, other=picture.copy()),
        "extend": lambda picture: Extend("a", picture=picture, directions=["up"]),
    }
    if kind == "ask with CLIP":
        pipe.model.config = pipe.config = replace(pipe.config, w_clip_vit=True, max_positions=300)
        pipe.__dict__["tower"] = SimpleNamespace(side=16, image_tokens=4)
    work = requests.get(kind, lambda picture: Answer([picture], "a"))(noise(1, large)).prepared(pipe)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Image.Image and each.size == large]
    del work


@pytest.mark.parametrize("idle", [False, True])
def test_a_dead_thread(pipe: ShowoPipeline, idle: bool) -> None:
    """Who waits is told at once, and so is who comes later."""
    with Engine(pipe, max_rows=2) as engine:
        readers = [] if idle else [begun(engine)[1]]
        engine.check_open()
        kill(engine._thread)
        try:
            readers.append(iter(engine.submit(SHORT)))
        except EngineFailedError:
            assert not idle  # who is idle dies of the request
        for reader in readers:
            with pytest.raises(EngineFailedError, match="SystemExit"):
                list(reader)
        for call in (engine.check_open, lambda: engine.submit(SHORT)):
            with pytest.raises(EngineFailedError, match="thread has ended: SystemExit"):
                call()
        facts = engine.facts()
        assert (facts.waiting, facts.running) == (0, 0)


def test_failed_step(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(hidden: Any) -> Any:
        raise IndexError("planted")

    now = planted(pipe, monkeypatch, fail)
    with Engine(pipe) as engine:
        _, events = begun(engine)
        now.set()
        with pytest.raises(StepError, match="planted"):
            list(events)
        now.clear()
        works(engine)
        assert (engine.facts().failed, engine.facts().done) == (1, 1)


def test_not_finite(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    now = planted(pipe, monkeypatch, lambda hidden: hidden * torch.nan)
    with Engine(pipe) as engine:
        _, events = begun(engine)
        now.set()
        with pytest.raises(NotFiniteError):
            list(events)
        now.clear()
        works(engine)


def test_nothing_is_kept(pipe: ShowoPipeline) -> None:
    """What requests have taken is free when they are over, however they ended."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def several(engine: Engine) -> list[weakref.ref[Any]]:
        tickets = [engine.submit(replace(SHORT, prompt=str(number))) for number in range(5)]
        tickets += [engine.submit(Answer([noise(1)], str(number), max_new_tokens=3)) for number in range(5)]
        tickets[3].cancel()
        tickets[7].cancel()
        for number, ticket in enumerate(tickets):
            if number not in (3, 7):
                ticket.result()
        for ticket in (begun(engine)[0] for _ in range(2)):
            ticket.cancel()
        works(engine)
        return [weakref.ref(ticket) for ticket in tickets]

    with Engine(pipe) as engine:
        several(engine)
        before = tensors()
        references = several(engine) + several(engine)
        assert tensors() == before
        assert not any(reference() for reference in references)
