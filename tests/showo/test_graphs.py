"""Steps as CUDA graphs: what they give is what the same steps give without, and few of them suffice.

Without a GPU a recorder stands in for the capture (`graph_stand_in`); with one, the same tests run on real graphs.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.engine import growing, open_canvas
from showo.engine.batching import Answer, Draw, Engine
from showo.engine.generate import generate_codes
from showo.engine.growing import GrowingText
from showo.engine.pipeline import ShowoPipeline
from showo.engine.samplers import Filling
from showo.engine.session import Session
from showo.errors import UserError
from showo.model import graphs as graphs_module
from showo.model.graphs import Graphs, Key, Step, capture
from showo.model.quantize import quantize
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import omni_attention, reference
from tests.showo.conftest import small_model
from tests.showo.graph_stand_in import Recorder

CODES = 16
TEXTS = [[1, 2, 3], [], [5] * 20, [7]]
QUESTIONS = [[1], [2, 3, 4, 5], [6, 7]]
SAMPLERS = ("confidence", "linear-temperature", "halton", "entropy-bound:4", "remask:0.3")


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.gpu)])
def graphs(model: Showo, request: pytest.FixtureRequest) -> Graphs:
    """Of the model, which is put on a GPU where there is one; it does not use them yet."""
    if request.param == "cuda":
        return Graphs(model.cuda(), capture=Counting())
    return Graphs(model, capture=Recorder())


class Counting:
    """`capture`, counted as a `Recorder` does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        replay, result = capture(step, device)

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted, result


@contextmanager
def used(graphs: Graphs) -> Iterator[Any]:
    """Inside, the model uses its graphs. Gives what counts."""
    graphs.model.graphs = graphs
    try:
        yield graphs._capture
    finally:
        graphs.model.graphs = None


def pictures(model: Showo, count: int) -> Tensor:
    vocab = model.config.vocabulary
    return torch.randint(vocab.image_offset, vocab.mask_id, (count, CODES)).to(model.device)


def texts_after(model: Showo, prompting: Prompting, images: Tensor, **options: Any) -> tuple[Session, list[Any]]:
    session = Session(model, len(images))
    session.append(prompting.asked(QUESTIONS[: len(images)], CODES), images)
    return session, list(session.generate_text(eot=-1, **options))


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
    for plain, got in zip(*results):
        assert got == plain if hasattr(plain, "text") else torch.equal(got.codes, plain.codes)
    assert recorder is not None
    assert recorder.replayed > 5


# ---------------------------------------------------------------- what a recording must not hold


def test_on_the_meta_device_nothing_comes_from_the_host(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, unlike on the CPU, what a step would make on the host is another device's."""
    model = model.to("meta")
    recorder = Recorder()
    model.graphs = Graphs(model, capture=recorder)
    monkeypatch.setattr(open_canvas, "check_finite", lambda finite: None)
    monkeypatch.setattr(Filling, "unknown", lambda filling: [CODES, CODES])
    generate_codes(model, prompting, [[1, 2], [3]], steps=3, guidance=1.0)

    def look(text: GrowingText) -> list[list[int]]:
        text._unseen, count = [], text.unseen
        return [[1, 2]] * count

    monkeypatch.setattr(GrowingText, "look", look)
    texts_after(model, prompting, pictures(model, 2), max_new_tokens=4)
    assert (recorder.recorded, recorder.replayed) == (2, 6)


@pytest.mark.usefixtures("emulated")
def test_kernels_of_the_device(model: Showo, prompting: Prompting) -> None:
    """The path of CUDA tensors, whose plans have tiles and whose texts take other kernels, on the emulated device."""
    options: dict[str, Any] = {"grid": (2, 8), "steps": 2, "guidance": 1.0, "seed": 2}
    plain = [generate_codes(model, prompting, [text], **options) for text in ([1, 2], [3] * 6)]
    images = pictures(model, 1)
    _, answers = texts_after(model, prompting, images, max_new_tokens=3)
    model.graphs = Graphs(model, capture=Recorder())
    got = [generate_codes(model, prompting, [text], **options) for text in ([1, 2], [3] * 6)]
    assert all(map(torch.equal, got, plain))
    assert texts_after(model, prompting, images, max_new_tokens=3)[1] == answers
    assert len(model.graphs) == 2


@pytest.mark.usefixtures("emulated")
def test_kernels_of_the_device_on_rows_beyond_those_in_use(model: Showo, prompting: Prompting) -> None:
    """What the plan of the mask holds of the rows that the pictures before have left is in nobody's way."""
    options: dict[str, Any] = {"grid": (2, 8), "steps": 2, "guidance": 0.0, "seed": 2}
    texts = [TEXTS, [[1] * 9, [2], []]]
    plain = [generate_codes(model, prompting, some, **options) for some in texts]
    graphs = model.graphs = Graphs(model, capture=Recorder())
    assert all(map(torch.equal, (generate_codes(model, prompting, some, **options) for some in texts), plain))
    assert len(graphs) == 1


def test_weights_that_lie_elsewhere(graphs: Graphs, prompting: Prompting) -> None:
    model = graphs.model
    for change in (
        lambda: model.to(torch.bfloat16),
        lambda: model.to(torch.float32),
        lambda: model.load_state_dict({n: x.clone() * 1.5 for n, x in model.state_dict().items()}, assign=True),
        lambda: setattr(model, "attend", reference.omni_attention),
        lambda: (model.showo.lm_head.register_forward_hook(lambda head, args, logits: -logits), graphs.clear()),
    ):
        change()
        plain = generate_codes(model, prompting, TEXTS, steps=3)
        with used(graphs) as counter:
            before = counter.recorded
            got = generate_codes(model, prompting, TEXTS, steps=3)
            assert counter.recorded == before + 1
            generate_codes(model, prompting, TEXTS, steps=3)
            assert counter.recorded == before + 1
        assert torch.equal(got, plain)


def test_quantised_weights(model: Showo, prompting: Prompting) -> None:
    """Graphs of the weights before are not used for those in their place."""
    model.graphs = Graphs(model, capture=Recorder())
    images = pictures(model, 2)
    texts_after(model, prompting, images, max_new_tokens=4, temperature=1.0)
    quantize(model, "int8")
    graphs, model.graphs = model.graphs, None
    plain = texts_after(model, prompting, images, max_new_tokens=4, temperature=1.0)[1]
    with used(graphs) as counter:
        assert texts_after(model, prompting, images, max_new_tokens=4, temperature=1.0)[1] == plain
        assert counter.recorded == 2
    assert len(graphs) == 1


# ---------------------------------------------------------------- where there can be no graph


def test_what_cannot_be_recorded(model: Showo, prompting: Prompting) -> None:
    """It runs as without graphs, is said once, and is not tried again."""
    plain = [generate_codes(model, prompting, [[1]], grid=grid, steps=3) for grid in ((4, 4), (3, 3))]
    recorder = Recorder(failing=True)
    model.graphs = Graphs(model, capture=recorder)
    try:
        raise KeyError("which has nothing to do with it")
    except KeyError:
        reason = r"no CUDA graph of 2x18 .*: operation not permitted .* capturing\. Such steps"
        with pytest.warns(UserWarning, match=reason):
            got = [generate_codes(model, prompting, [[1]], grid=(4, 4), steps=3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got.append(generate_codes(model, prompting, [[1]], grid=(3, 3), steps=3))
        texts_after(model, prompting, pictures(model, 1), max_new_tokens=3)
        generate_codes(model, prompting, [[2, 3]], grid=(4, 4), steps=3)
    assert all(map(torch.equal, got, plain))
    assert recorder.recorded == 3  # two grids and a text
    assert len(model.graphs) == 0


def test_memory_that_runs_out(model: Showo, prompting: Prompting) -> None:
    """The graphs there are make room for a new one. Where that is too large by itself, its user alone goes without."""

    def draw(grid: tuple[int, int]) -> Tensor:
        return generate_codes(model, prompting, [[1]], grid=grid, steps=3)

    grids = [(4, 4), (3, 3), (4, 4)]
    plain = [draw(grid) for grid in grids]
    recorder = Recorder(room=1)
    graphs = model.graphs = Graphs(model, capture=recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(torch.equal, map(draw, grids), plain))
    assert (recorder.recorded, recorder.replayed, len(graphs)) == (5, 9, 1)
    recorder.room = 0
    with pytest.warns(UserWarning, match="no CUDA graph of 2x11 .*: CUDA out of memory"):
        assert torch.equal(draw((3, 3)), plain[1])
    assert (recorder.recorded, recorder.replayed, len(graphs)) == (7, 9, 0)
    recorder.room = 1
    assert torch.equal(draw((3, 3)), plain[1])
    assert (recorder.recorded, recorder.replayed, len(graphs)) == (8, 12, 1)


def test_no_graphs_under_autocast(model: Showo, prompting: Prompting) -> None:
    model.graphs = Graphs(model, capture=Recorder())
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="autocast keeps weights"):
        generate_codes(model, prompting, [[1]], steps=2)
    assert len(model.graphs) == 0
    generate_codes(model, prompting, [[1]], steps=2)
    assert len(model.graphs) == 1


def test_without_a_gpu(model: Showo, prompting: Prompting, checkpoint: Path, unreadable: Path) -> None:
    model.graphs = Graphs(model)
    with pytest.warns(UserWarning, match="the model lies on cpu, and CUDA graphs are of GPUs"):
        generate_codes(model, prompting, [[1]], steps=2)
    with pytest.raises(UserError, match="cuda_graphs: the device is cpu"):
        ShowoPipeline.from_pretrained(unreadable, cuda_graphs=True)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        Graphs(model, most=0)


class FakeCuda:
    """As much of torch.cuda as `capture` uses, without a GPU. events: what was asked for, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.of_thread = threading.local()
        self.pools = 0

    @property
    def stream_now(self) -> str:
        return getattr(self.of_thread, "stream", "default")

    @stream_now.setter
    def stream_now(self, stream: str) -> None:
        self.of_thread.stream = stream

    def CUDAGraph(self) -> Any:
        return type("FakeGraph", (), {"replay": lambda graph: self.events.append("replay")})()

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    def current_device(self) -> int:
        return 1

    def Stream(self, device: torch.device) -> str:
        return f"capturing on {device}"

    def current_stream(self) -> str:
        return self.stream_now

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.events.append(f"on {device}")
        yield

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before = self.stream_now
        self.stream_now = stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: Any, pool: tuple[int, int], stream: str, capture_error_mode: str) -> Iterator[None]:
        self.events.append(f"begin {capture_error_mode} in {pool}")
        self.stream_now = stream  # and stays so where the recording fails, as in torch
        yield
        self.events.append("end")
        self.stream_now = "default"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """With the private functions that torch has where it is built for CUDA."""
    cuda = FakeCuda()
    monkeypatch.setattr(graphs_module.torch, "cuda", cuda)
    monkeypatch.setattr(graphs_module, "_capture_stream", graphs_module._capture_stream.__wrapped__)
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool", "_cuda_releasePool"):
        event = functools.partial(lambda name, *args: cuda.events.append(" ".join(map(str, (name, *args)))), name)
        monkeypatch.setattr(torch._C, name, event, raising=False)
    return cuda


def test_a_recording_begins_after_a_first_call(cuda: FakeCuda) -> None:
    """Each has a workspace of cuBLAS of its own, and no garbage is collected in it."""
    result = torch.ones(3)

    def step() -> Tensor:
        cuda.events.append(f"step on {cuda.stream_now}")
        assert gc.isenabled() == (cuda.stream_now == "default")
        return result

    replay, got = capture(step, torch.device("cuda:1"))
    assert got is result
    replay()
    assert cuda.events == [
        "on cuda:1",
        "step on default",
        "_cuda_clearCublasWorkspaces",
        "begin thread_local in (0, 1)",
        "step on capturing on cuda:1",
        "end",
        "_cuda_clearCublasWorkspaces",
        "replay",
    ]
    assert gc.isenabled()


@pytest.mark.parametrize("ended", [False, True], ids=["torch < 2.12", "torch >= 2.12"])
def test_a_recording_that_fails_is_ended(cuda: FakeCuda, ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is given back, and another capture ends what the first began; unless torch has done all that."""

    def failing() -> Tensor:
        if cuda.stream_now != "default":
            raise RuntimeError("cannot be recorded")
        return torch.ones(3)

    def not_recording(device: int, pool: tuple[int, int]) -> None:
        raise RuntimeError("not currently recording to mempool_id")

    if ended:
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)
    monkeypatch.setattr(torch, "zeros", lambda count, device: torch.ones(count))
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        capture(failing, torch.device("cuda:1"))
    assert cuda.stream_now == "default"
    assert gc.isenabled()
    cleared = "_cuda_clearCublasWorkspaces"
    mended = ["_cuda_endAllocateToPool 1 (0, 1)", "_cuda_releasePool 1 (0, 1)", "begin thread_local in (0, 2)", "end"]
    expected = ["on cuda:1", cleared, "begin thread_local in (0, 1)", *([] if ended else mended), cleared]
    assert cuda.events == expected


def test_one_recording_at_a_time(cuda: FakeCuda) -> None:
    """Of all threads; the first calls of their steps need not wait for each other."""
    recording, both = threading.Semaphore(), threading.Barrier(2, timeout=20)

    def step() -> Tensor:
        if cuda.stream_now == "default":
            both.wait()
        else:
            assert recording.acquire(blocking=False)
            time.sleep(0.05)
            recording.release()
        return torch.ones(3)

    with ThreadPoolExecutor(2) as threads:
        for captured in [threads.submit(capture, step, torch.device("cuda:1")) for _ in range(2)]:
            captured.result()
    assert cuda.events.count("end") == 2


def test_without_workspaces_of_their_own_there_are_no_graphs(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    with pytest.raises(RuntimeError, match="cannot give a CUDA graph a cuBLAS workspace of its own"):
        capture(lambda: torch.ones(3), torch.device("cuda"))
    assert not [event for event in cuda.events if event.startswith("begin")]


def test_the_recorder_sees_what_a_graph_cannot_hold(model: Showo) -> None:
    """The stand-in itself: reading foreign memory, waiting, data from the host."""
    foreign = torch.ones(2)
    forwards: dict[str, Callable[[Showo, Step], Tensor]] = {
        "no memory of the graph": lambda model, step: step.positions + foreign.sum(),
        "waits for the device": lambda model, step: step.positions * int(step.positions.max()),
        "from the host": lambda model, step: step.positions + torch.tensor([3]),
    }
    for message, forward in forwards.items():
        with pytest.raises(AssertionError, match=message):
            graphs_module.Graph(model, Key.of(forward, 1, 1, 1), Recorder())


# ---------------------------------------------------------------- what only a GPU shows


@pytest.mark.gpu
def test_the_end_of_a_real_graph_leaves_others_alone() -> None:
    """A product with so long a sum that cuBLAS splits it takes a workspace, which every graph needs to itself."""
    a, b = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((64, 16384), (16384, 64)))
    product = a @ b
    captured = [capture(lambda: a @ b, torch.device("cuda", 0)) for _ in range(3)]
    del captured[0]
    torch.cuda.empty_cache()
    filled = torch.full((1 << 26,), torch.nan, device="cuda")  # where the memory of the first may have been
    for replay, result in captured:
        result.zero_()
        replay()
        torch.testing.assert_close(result, product)
    assert filled.isnan().all()


@pytest.mark.gpu
def test_a_real_graph_makes_room_for_another(model: Showo, prompting: Prompting) -> None:
    model.to("cuda", torch.bfloat16)

    def draw(grid: tuple[int, int]) -> Tensor:
        return generate_codes(model, prompting, TEXTS, grid=grid, steps=3)

    plain = {grid: draw(grid) for grid in ((4, 4), (3, 3), (2, 4))}
    counter = Counting()
    graphs = model.graphs = Graphs(model, most=2, capture=counter)
    for grid in plain:
        assert torch.equal(draw(grid), plain[grid])
    torch.cuda.empty_cache()
    assert torch.equal(draw((3, 3)), plain[3, 3])
    assert (counter.recorded, len(graphs)) == (3, 2)


@pytest.mark.gpu
def test_a_real_capture_that_fails() -> None:
    """In a process of its own, lest what it leaves behind fails other tests."""
    check = f"from {__name__} import check_a_real_capture_that_fails as check; check()"
    paths = os.pathsep.join(path for path in sys.path if path)
    child = [sys.executable, "-c", check]
    done = subprocess.run(child, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def check_a_real_capture_that_fails() -> None:
    """A step that waits for the device: the ordinary path draws the same, on the stream that was current before, and
    memory, random numbers and other graphs are to be had as before."""
    model = small_model().cuda()
    prompting = Prompting.for_model(model.config, eot=0)
    plain = generate_codes(model, prompting, TEXTS, steps=3)
    torch.cuda.manual_seed(1)
    numbers = [torch.rand(3, device="cuda") for _ in range(2)]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return omni_attention(q, k, v, mask) * float(torch.ones(1, device="cuda").item())

    model.attend = attend
    model.graphs = Graphs(model)
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="no CUDA graph of .*capturing"):
        got = generate_codes(model, prompting, TEXTS, steps=3)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(got, plain)
    torch.cuda.empty_cache()
    torch.cuda.manual_seed(1)
    assert all(torch.equal(torch.rand(3, device="cuda"), drawn) for drawn in numbers)
    model.attend = omni_attention
    assert torch.equal(generate_codes(model, prompting, TEXTS, steps=3), plain)
    assert len(model.graphs) == 1
