"""What the tests ask of an engine, and what they do to it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from showo.engine.batching import Answer, Draw, DrawingDone, Engine
from showo.engine.pipeline import ShowoPipeline

LONG = Draw("a long one", {"steps": 1000})  # takes seconds, so that it is always under way when something is done to it
SHORT = Draw("a", {"steps": 2, "seed": 3})


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator).numpy())


def works(engine: Engine) -> None:
    """Whether it draws what the pipeline does, and nothing else is left in it."""
    drawn = engine.submit(SHORT).result()
    facts = engine.facts()
    assert (facts.waiting, facts.running, facts.rows, facts.cache_bytes) == (0, 0, 0, 0)
    alone = engine.pipe.generate("a", steps=2, seed=3, progress=False)[0]
    assert isinstance(drawn, DrawingDone)
    assert drawn.picture.tobytes() == alone.tobytes()


def begun(engine: Engine, request: Draw | Answer = LONG) -> Any:
    """A ticket, and its events after the first one, which has come."""
    ticket = engine.submit(request)
    events = iter(ticket)
    next(events)
    return ticket, events


def kill(thread: threading.Thread) -> None:
    """Ends a thread at its next instruction, whatever it is at."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


def held(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Forward passes wait until the event is set."""
    go_on, inner = threading.Event(), pipe.model.hidden_states
    monkeypatch.setattr(pipe.model, "hidden_states", lambda *a, **k: go_on.wait(60) and inner(*a, **k))
    return go_on


def planted(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> threading.Event:
    """Changes what the model gives from the moment on that the event is set."""
    now, inner = threading.Event(), pipe.model.hidden_states
    monkeypatch.setattr(
        pipe.model, "hidden_states", lambda *a, **k: change(inner(*a, **k)) if now.is_set() else inner(*a, **k)
    )
    return now
