"""Steps as CUDA graphs: what they give is what the same steps give without, and few of them suffice.

Without a GPU a recorder stands in for the capture (`stand_in`); with one, the same tests run on real graphs.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.engine import growing
from showo.engine.batching import Answer, Draw, Engine
from showo.engine.generate import generate_codes
from showo.engine.pipeline import ShowoPipeline
from showo.engine.session import Session
from showo.model.graphs import Graphs, Key
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import omni_attention
from tests.showo.conftest import small_model
from tests.showo.graphs.stand_in import Recorder
from tests.showo.graphs.steps import CODES, QUESTIONS, SAMPLERS, TEXTS, pictures, texts_after, used

# ---------------------------------------------------------------- the same results


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures(graphs: Graphs, prompting: Prompting, sampler: str, guidance: float) -> None:
    """Rows of different lengths; every option that changes from step to step changes."""
    options: dict[str, Any] = {
        "steps": 5,
        "guidance": guidance,
        "sampler": sampler,
        "guidance_schedule": "linear",
        "temperature": 2.0,
        "top_k": 9,
    }
    for seed in (3, 4):
        plain = generate_codes(graphs.model, prompting, TEXTS, seed=seed, **options)
        with used(graphs) as counter:
            assert torch.equal(generate_codes(graphs.model, prompting, TEXTS, seed=seed, **options), plain)
            assert counter.recorded == 1
    assert counter.replayed > 4


@pytest.mark.parametrize(
    "options",
    [
        {"also": [[([8], 0.5)], [], [([9, 9], -1.0), ([3], 2.0)], []], "guidance": 1.0},
        {"negatives": [[4], [], [5, 6], [7]], "guidance": 2.0},
        {"guidance": 2.0, "guidance_schedule": "off0.5"},
    ],
    ids=["composed", "negative", "guidance that ends"],
)
def test_conditions(graphs: Graphs, prompting: Prompting, options: dict[str, Any]) -> None:
    plain = generate_codes(graphs.model, prompting, TEXTS, steps=4, **options)
    with used(graphs) as counter:
        assert torch.equal(generate_codes(graphs.model, prompting, TEXTS, steps=4, **options), plain)
    assert counter.recorded == (2 if "guidance_schedule" in options else 1)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "seed": 5}])
def test_answers(graphs: Graphs, prompting: Prompting, options: dict[str, Any]) -> None:
    """Of questions of different lengths, and what the rows go on with afterwards. Three rows take a graph of four."""
    images = pictures(graphs.model, 3)
    session, plain = texts_after(graphs.model, prompting, images, max_new_tokens=9, **options)
    session.append_text([[1], [2, 3], []])
    with used(graphs) as counter:
        other, got = texts_after(graphs.model, prompting, images, max_new_tokens=9, **options)
        assert got == plain
        assert (counter.recorded, counter.replayed) == (1, 8)
        other.append_text([[1], [2, 3], []])
    assert other.lengths == session.lengths
    torch.testing.assert_close(other._last, session._last)


def test_an_answer_that_nobody_takes_to_its_end(
    graphs: Graphs, prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not ids have been drawn that nobody looked at, the rows go on from what was taken."""
    images, lasts = pictures(graphs.model, 3), []
    for unseen in (1, 4):
        monkeypatch.setattr("showo.engine.session._unseen_at_most", lambda device, unseen=unseen: unseen)
        for with_graphs in (False, True):
            graphs.model.graphs = graphs if with_graphs else None
            session = Session(graphs.model, 3)
            session.append(prompting.asked(QUESTIONS, CODES), images)
            text = session.generate_text(eot=-1, max_new_tokens=9)
            taken = [next(text) for _ in range(3)]
            text.close()
            session.append_text([[5], [], [6]])
            lasts.append((taken, session.lengths, session._last))
    for taken, lengths, last in lasts[1:]:
        assert (taken, lengths) == lasts[0][:2]
        torch.testing.assert_close(last, lasts[0][2])


# ---------------------------------------------------------------- many users of few graphs


def test_users_take_turns(graphs: Graphs, prompting: Prompting) -> None:
    """Two pictures and two texts of equal sizes, step by step in turn: each finds its own state in the one graph."""
    graphs.model.graphs, model = graphs, graphs.model
    images = pictures(model, 4)
    sessions = []
    for n in range(2):
        sessions.append(Session(model, 2))
        sessions[n].append(prompting.asked(QUESTIONS[n : n + 2], CODES), images[2 * n : 2 * n + 2])
        sessions[n].reserve(CODES + 2)
    canvases = [session.open_image(CODES) for session in sessions]
    texts = [session.open_text() for session in sessions]
    before = [[canvas.logits(images[:2]), canvas.logits(images[2:])] for canvas in canvases]
    kept = [[logits.clone() for logits in both] for both in before]
    got: list[list[Tensor]] = [[], []]
    for _ in range(4):
        for number, text in enumerate(texts):
            got[number].append(text.logits())
            text.give(text.logits().argmax(-1))
            text.read()
            again = canvases[number].logits(images[:2])
            assert torch.equal(again, kept[number][0])
    assert all(torch.equal(a, b) for both, copies in zip(before, kept) for a, b in zip(both, copies))
    assert graphs._capture.recorded == len(graphs) == 2  # type: ignore[attr-defined]
    for session, text in zip(sessions, texts):
        session.keep_text(text)
    graphs.model.graphs = None
    for number, session in enumerate(sessions):
        alone = Session(model, 2)
        alone.append(prompting.asked(QUESTIONS[number : number + 2], CODES), images[2 * number : 2 * number + 2])
        alone.reserve(9)
        text = alone.open_text()
        for logits in got[number]:
            torch.testing.assert_close(logits, text.logits())
            text.give(text.logits().argmax(-1))
            text.read()
        alone.keep_text(text)
        for both in (session, alone):
            both.append_text([[1], [2]])
        torch.testing.assert_close(session._last, alone._last)


def switched_off(model: Showo) -> None:
    model.graphs = None


def other_graphs(model: Showo) -> None:
    model.graphs = Graphs(model, capture=Recorder())


def other_precision(model: Showo) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def other_attention(model: Showo) -> None:
    model.attend = functools.partial(omni_attention)


@pytest.fixture
def same_precision_afterwards() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("same_precision_afterwards")
@pytest.mark.parametrize("change", [switched_off, other_graphs, other_precision, other_attention])
def test_a_text_that_leaves_its_graph(model: Showo, prompting: Prompting, change: Callable[[Showo], None]) -> None:
    """In the middle: it takes along what it has read. Precision may be set for CUDA alone (which no CPU heeds)."""
    images = pictures(model, 3)
    session, plain = texts_after(model, prompting, images, max_new_tokens=9)
    session.append_text([[1], [2, 3], []])
    recorder = Recorder()
    model.graphs = Graphs(model, capture=recorder)
    other = Session(model, 3)
    other.append(prompting.asked(QUESTIONS, CODES), images)
    got = []
    for number, ids in enumerate(other.generate_text(eot=-1, max_new_tokens=9)):
        got.append(ids)
        if number == 4:
            assert recorder.replayed > 2
            change(model)
    assert got == plain
    other.append_text([[1], [2, 3], []])
    torch.testing.assert_close(other._last, session._last)


@pytest.mark.parametrize("most", [1, 2])
def test_a_graph_makes_room_for_another(model: Showo, prompting: Prompting, most: int) -> None:
    """However many shapes there are; what a text has read survives the end of its graph, and memory is freed."""
    plain = {}
    for grid in ((4, 4), (3, 3), (2, 4)):
        plain[grid] = generate_codes(model, prompting, TEXTS, grid=grid, steps=2)
    images = pictures(model, 2)
    _, answers = texts_after(model, prompting, images, max_new_tokens=6)
    graphs = model.graphs = Graphs(model, most=most, capture=Recorder())
    session = Session(model, 2)
    session.append(prompting.asked(QUESTIONS[:2], CODES), images)
    text, got, freed = session.generate_text(eot=-1, max_new_tokens=6), [], []
    for number, ids in enumerate(text):
        got.append(ids)
        grid = [*plain][number % 3]
        assert torch.equal(generate_codes(model, prompting, TEXTS, grid=grid, steps=2), plain[grid])
        freed += [weakref.ref(graph) for graph in graphs._graphs.values()]
        assert 1 <= len(graphs) <= most
    assert got == answers
    graphs.clear()
    gc.collect()
    assert [graph() for graph in freed] == [None] * len(freed)


def test_a_graph_keeps_no_user_alive(model: Showo, prompting: Prompting) -> None:
    """Nor the keys and values of its rows."""
    model.graphs = Graphs(model, capture=Recorder())
    session, _ = texts_after(model, prompting, pictures(model, 2), max_new_tokens=3)
    session.reserve(CODES + 2)
    image = session.open_image(CODES)
    image.logits(pictures(model, 2))
    gone = [weakref.ref(x) for x in (image, session, session._cache)]
    del image, session
    assert [x() for x in gone] == [None] * 3
    assert len(model.graphs) == 2


def test_a_model_ends_with_its_graphs(prompting: Prompting) -> None:
    """At once, without a collection of garbage: weights and graphs may fill the GPU."""
    model = small_model()
    model.graphs = Graphs(model, capture=lambda step, device: (lambda: None, step()))
    generate_codes(model, prompting, TEXTS, steps=2)
    gone = [weakref.ref(x) for x in (model, model.graphs, *model.graphs._graphs.values())]
    gc.disable()
    try:
        del model
        assert [x() for x in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_copy_has_no_graphs(model: Showo, prompting: Prompting) -> None:
    """They are of the first one's memory; nor can graphs and compiled code be pickled."""
    model.graphs, model.compiled = Graphs(model, capture=Recorder()), growing.compiled_steps()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (other.graphs, other.compiled) == (None, {})
        plain = generate_codes(other, prompting, TEXTS, steps=2)
    model.compiled = {}
    assert torch.equal(generate_codes(model, prompting, TEXTS, steps=2), plain)
    assert len(model.graphs) == 1


def test_few_graphs_suffice(model: Showo, prompting: Prompting) -> None:
    """One for prompts of any length; for answers to questions of any length, and however many rows, powers of two."""
    recorder = Recorder()
    model.graphs = Graphs(model, capture=recorder)
    for text in ([], [1], [2] * 5, [3] * 30):
        generate_codes(model, prompting, [text], steps=2)
    assert recorder.recorded == 1
    for rows in (1, 2, 3, 3, 2):
        texts_after(model, prompting, pictures(model, rows), max_new_tokens=3)
    assert recorder.recorded == 1 + 3
    assert [Key.of(growing.text_logits, rows, 1, 257) for rows in (5, 8, 9)] == [
        Key(growing.text_logits, rows, 1, 512) for rows in (8, 8, 16)
    ]
    rounded = [Key.of(growing.image_logits, rows, 18, 256).rows for rows in range(1, 19)]
    assert rounded == [1, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20, 20]


def test_rows_beyond_those_in_use(graphs: Graphs, prompting: Prompting) -> None:
    """Pictures in three rows and in four take turns in a graph of four."""

    def draw(rows: int) -> Tensor:
        return generate_codes(graphs.model, prompting, TEXTS[:rows], steps=3, seed=rows, guidance=0.0)

    plain = {rows: draw(rows) for rows in (3, 4)}
    with used(graphs) as counter:
        for rows in (3, 4, 3):
            assert torch.equal(draw(rows), plain[rows])
    assert (counter.recorded, counter.replayed) == (1, 9)


def test_an_engine_uses_them(checkpoint: Path) -> None:
    """Requests of all kinds that come and go, in batches of other sizes."""
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    requests = [Draw("a", {"seed": n, "steps": 2 + n, "guidance": n % 2 * 1.5}) for n in range(4)]
    picture = pipe.generate("b", steps=2)[0]
    asked = [Answer([picture], "c" * (n + 1), max_new_tokens=2 + 3 * n) for n in range(3)]
    results = []
    for recorder in (None, Recorder()):
        pipe.model.graphs = None if recorder is None else Graphs(pipe.model, most=3, capture=recorder)
        with Engine(pipe, max_rows=8) as engine:
            tickets = [engine.submit(request) for request in (*requests, *asked)]
            results.append([ticket.result() for ticket in tickets])
            graphs = pipe.model.graphs
            assert engine.facts().cache_bytes == (0 if graphs is None else graphs.cache_bytes)
    for plain, got in zip(*results):
        assert got == plain if hasattr(plain, "text") else torch.equal(got.codes, plain.codes)
    assert recorder is not None
    assert recorder.replayed > 5
    assert graphs is not None
    assert graphs.cache_bytes == sum(graph.cache.nbytes for graph in graphs._graphs.values()) > 0
