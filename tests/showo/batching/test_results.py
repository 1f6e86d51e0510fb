"""Requests that come and go, together, get what they would get alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from showo.engine.batching import Answer, AnswerDone, Draw, DrawingDone, Engine, Extend, Inpaint, Piece, Progress, Vary
from showo.engine.pipeline import ShowoPipeline
from showo.engine.understand import answer
from showo.errors import UserError
from tests.showo.batching.requests import SHORT, held, noise


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
    go_on = held(pipe, monkeypatch)
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
