"""The engine: requests that come and go get what they would get alone, and one that goes wrong is alone in that."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from showo.engine.batching import (
    Answer,
    AnswerDone,
    DeadlineError,
    Draw,
    DrawingDone,
    Engine,
    EngineClosedError,
    EngineFailedError,
    Extend,
    Inpaint,
    Piece,
    Progress,
    QueueFullError,
    RequestCancelledError,
    StepError,
    Vary,
)
from showo.engine.pipeline import ShowoPipeline
from showo.engine.understand import answer
from showo.errors import NotFiniteError, UserError

LONG = Draw("a long one", {"steps": 1000})  # takes seconds, so that it is always under way when something is done to it
SHORT = Draw("a", {"steps": 2, "seed": 3})


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator).numpy())


@pytest.fixture
def pipe(checkpoint: Path) -> ShowoPipeline:
    return ShowoPipeline.from_pretrained(checkpoint)


@pytest.fixture
def engine(pipe: ShowoPipeline) -> Iterator[Engine]:
    with Engine(pipe) as engine:
        yield engine


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


def test_every_kind(pipe: ShowoPipeline) -> None:
    picture = noise(1)
    options = {"steps": 3, "seed": 5, "guidance": 1.5}
    quiet = {"progress": False}
    expected = [
        pipe.generate("a", **options, **quiet)[0],
        pipe.inpaint(picture, "b", (0, 0, 8, 8), blend=1, **options, **quiet)[0],
        pipe.vary(picture, "c", share=0.4, **options, **quiet)[0],
        pipe.extend(picture, ["a", "b"], ["left", "up"], blend=2, **options, **quiet)[0],
    ]
    texts = [pipe.describe([picture], "a b", max_new_tokens=5)[0], pipe.describe([picture], max_new_tokens=5)[0]]
    with Engine(pipe) as engine:
        tickets = [
            engine.submit(Draw("a", options, previews=True)),
            engine.submit(Inpaint("b", options, picture=picture, mask=(0, 0, 8, 8), blend=1)),
            engine.submit(Vary("c", options, picture=picture, share=0.4)),
            engine.submit(Extend("", options, picture=picture, directions=["left", "up"], prompts=["a", "b"], blend=2)),
        ]
        asked = [
            engine.submit(Answer([picture], "a b", max_new_tokens=5)),
            engine.submit(Answer([picture], max_new_tokens=5)),
        ]
        for ticket, wanted in zip(tickets, expected, strict=True):
            events = list(ticket)
            assert isinstance(events[0], Progress)
            assert isinstance(events[-1], DrawingDone)
            assert events[-1].picture.tobytes() == wanted.tobytes()
        for ticket, text in zip(asked, texts, strict=True):
            events = list(ticket)
            last = events.pop()
            assert isinstance(last, AnswerDone)
            assert last.text == text == "".join(event.text for event in events)
        facts = engine.facts()
    assert (facts.pictures, facts.done, facts.tokens) == (4, 6, 10)
    assert (facts.waiting, facts.running, facts.rows, facts.cache_bytes) == (0, 0, 0, 0)


def mixed(random: Random) -> tuple[Draw | Answer, Callable[[ShowoPipeline], Any]]:
    """A request of some kind, and what the pipeline makes of it alone."""
    prompt, picture = random.choice(["", "a", "a red thing", "b c"]), noise(random.randrange(99))
    if random.random() < 0.4:
        how = {
            "max_new_tokens": random.randint(1, 12),
            "temperature": random.choice([0.0, 0.8, 1.3]),
            "top_k": random.choice([0, 5]),
            "top_p": random.choice([1.0, 0.9]),
            "seed": random.randrange(99),
        }
        question = random.choice([None, "what?", "how many of them"])
        return Answer([picture], question, **how), lambda pipe: pipe.describe([picture], question, **how)[0]
    options: dict[str, Any] = {
        "steps": random.randint(1, 7),
        "guidance": random.choice([0.0, 1.0, 2.5]),
        "temperature": random.choice([0.5, 1.0]),
        "top_k": random.choice([0, 9]),
        "schedule": random.choice(["cosine", "linear"]),
        "sampler": random.choice(["confidence", "linear-temperature", "halton", "entropy-bound:2", "remask"]),
        "guidance_schedule": random.choice(["constant", "linear", "off0.4"]),
        "size": random.choice([(16, 16), (16, 16), (24, 16)]),
        "seed": random.randrange(99),
    }
    if random.random() < 0.3:  # two further prompts make four rows
        options["also"] = [("y", random.uniform(-2, 4)), ("w", 1.0)][: random.randint(1, 2)]
    if options["guidance"] > 0 and random.random() < 0.5:
        options["negative_prompt"] = "z"
    if random.random() < 0.3:
        options["also"] = [("b", -0.7), ("x y", 0.4)][: random.randint(1, 2)]
    if random.random() < 0.3:
        del options["size"]
        directions = random.sample(["left", "up", "right"], 2)
        return Extend(prompt, options, picture=picture, directions=directions), lambda pipe: pipe.extend(
            picture, prompt, directions, **options, progress=False
        )[0]
    if random.random() < 0.3:
        return Vary(prompt, options, picture=picture), lambda pipe: pipe.vary(
            picture, prompt, **options, progress=False
        )[0]
    return Draw(prompt, options), lambda pipe: pipe.generate(prompt, **options, progress=False)[0]


@pytest.mark.parametrize("max_rows", [1, 5, 32])
def test_as_alone(pipe: ShowoPipeline, max_rows: int) -> None:
    """Requests that arrive when they like, each read as slowly as its reader likes."""
    seed = secrets.randbits(32)
    print("seed", seed)
    random = Random(seed)
    requests = [mixed(random) for _ in range(12)]
    alone = [expected(pipe) for _, expected in requests]
    with Engine(pipe, max_rows=max_rows) as engine:
        tickets = []
        for request, _ in requests:
            tickets.append(engine.submit(request))
            if random.random() < 0.4:
                time.sleep(random.random() / 100)
        for (request, _), ticket, wanted in zip(requests, tickets, alone, strict=True):
            done = ticket.result()
            if isinstance(done, AnswerDone):
                assert done.text == wanted, request
            else:
                assert done.picture.tobytes() == wanted.tobytes(), request
        facts = engine.facts()
    assert (facts.done, facts.rows, facts.cache_bytes) == (len(requests), 0, 0)


def test_shared_passes(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs at the same time takes no more forward passes than the longest of it."""
    go_on, inner = threading.Event(), pipe.model.hidden_states
    monkeypatch.setattr(pipe.model, "hidden_states", lambda *a, **k: go_on.wait(60) and inner(*a, **k))
    with Engine(pipe, max_rows=64, max_answers=20) as engine:
        drawn = [engine.submit(Draw(str(n), {"steps": 10 + n, "seed": n, "size": (24, 16)})) for n in range(6)]
        told = [engine.submit(Answer([noise(n)], max_new_tokens=10 + n, temperature=2.0)) for n in range(20)]
        go_on.set()
        for ticket in [*drawn, *told]:
            ticket.result()
        facts = engine.facts()
    assert facts.tokens > 200
    answers = 20 + 2 * 29  # the first id of each alone, then those of 16 and of 4 together
    assert facts.steps <= 1 + 15 + answers


def test_earlier_turns(pipe: ShowoPipeline, engine: Engine) -> None:
    picture, earlier = noise(2), [(None, "x y"), ("what?", " z")]
    done = engine.submit(Answer([picture], "and now?", earlier, max_new_tokens=6, temperature=0.7, seed=11)).result()
    engine.close()
    row: list[int] = []
    for question, said in [*earlier, ("and now?", None)]:
        row += pipe.question_ids([question])[0]
        if said is not None:
            row += [*pipe.text_tokenizer.encode(" " + said.strip()), pipe.prompting.eot]
    (ids,) = answer(
        pipe.model, pipe.prompting, pipe.encode([picture], (4, 4)), [row], max_new_tokens=6, temperature=0.7, seed=11
    )
    assert isinstance(done, AnswerDone)
    assert done.text == pipe.text_tokenizer.decode(ids).strip()
    assert done.prompt_tokens == 1 + 18 + len(pipe.prompting.frame(row))


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


def kill(thread: threading.Thread) -> None:
    """Ends a thread at its next instruction, whatever it is at."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


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


def test_asyncio_readers(engine: Engine) -> None:
    async def read(request: Draw | Answer) -> list[Any]:
        ticket = await asyncio.to_thread(engine.submit, request)
        return [event async for event in ticket]

    async def both() -> list[list[Any]]:
        return await asyncio.gather(read(SHORT), read(Answer([noise(1)], "a", max_new_tokens=4)))

    drawn, told = asyncio.run(both())
    assert [type(event) for event in drawn[-2:]] == [Progress, DrawingDone]
    assert {type(event) for event in told[:-1]} <= {Piece}
    assert isinstance(told[-1], AnswerDone)


def planted(pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> threading.Event:
    """Changes what the model gives from the moment on that the event is set."""
    now, inner = threading.Event(), pipe.model.hidden_states
    monkeypatch.setattr(
        pipe.model, "hidden_states", lambda *a, **k: change(inner(*a, **k)) if now.is_set() else inner(*a, **k)
    )
    return now


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


def test_composed_prompts(pipe: ShowoPipeline) -> None:
    also = [("b", 2.0), ("c", -1.0)]
    (expected,) = pipe.generate("a", steps=3, also=also, progress=False)
    with Engine(pipe) as engine:
        for given in (also, [also]):
            done = engine.submit(Draw("a", {"steps": 3, "also": given})).result()
            assert isinstance(done, DrawingDone)
            assert done.picture.tobytes() == expected.tobytes()
        with pytest.raises(UserError, match="also has 20001 characters, at most 20000 are taken"):
            engine.submit(Draw("a", {"also": [("b", 1.0), ("x" * 20_001, 1.0)]}))
        with pytest.raises(UserError, match="also has 19 tokens, this model reads 18"):
            engine.submit(Draw("a", {"also": [("x" * 19, 1.0)]}))


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
