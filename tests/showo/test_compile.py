"""Steps and the image tokenizer as torch.compile makes them: the same results, from few versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.engine.generate import generate_codes
from showo.engine.growing import compiled_steps
from showo.engine.pipeline import ShowoPipeline
from showo.engine.session import Session
from showo.model.graphs import Graphs
from showo.model.transformer import Showo
from showo.prompting import Prompting
from tests.showo.conftest import small_model
from tests.showo.graphs.stand_in import Recorder

CODES = 16


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def model() -> Showo:
    """With one layer, since what is compiled has all of them: the rows of the last, and columns that all see."""
    return small_model(num_layers=1)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Instead of what torch.compile makes: of each version, how many operators it has. No code is generated.

    Where torch.compile can be told how many versions there may be, torch's own limit, which stays below what a GPU
    needs, is lowered to show that the steps' limit counts.
    """
    made: list[int] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(len(graph.graph.nodes))
        return graph.forward

    limited = {"recompile_limit": 1} if "recompile_limit" in signature(torch.compile).parameters else {}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(limited):
        yield made


def answers(model: Showo, prompting: Prompting, rows: int, most: int) -> list[list[int | None]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(41, 100, (rows, CODES), generator=generator)
    session = Session(model, rows)
    session.append(prompting.asked([[1, *[2] * row] for row in range(rows)], CODES), images)
    return list(session.generate_text(eot=-1, max_new_tokens=most, temperature=1.0, seed=3))


def test_few_versions_suffice(model: Showo, prompting: Prompting, versions: list[int]) -> None:
    """For prompts and answers of any length, in any number; a single row has a version of its own."""

    def draw(*texts: list[int], **options: Any) -> Tensor:
        return generate_codes(model, prompting, texts, steps=3, seed=2, guidance=1.0, **options)

    calls: list[tuple[Callable[[], Any], int]] = [
        (lambda: draw([1, 2, 3], []), 1),
        (lambda: draw([1]), 1),
        (lambda: draw([1], [2] * 20, [3, 4]), 1),
        (lambda: draw([5], grid=(3, 5)), 1),
        (lambda: draw([1, 2], [3], sampler="halton"), 1),
        (lambda: answers(model, prompting, 3, 6), 2),
        (lambda: answers(model, prompting, 2, 9), 2),
        (lambda: answers(model, prompting, 1, 4), 3),
    ]
    plain = [call() for call, _ in calls]
    model.compiled = compiled_steps()
    for (call, most), expected in zip(calls, plain, strict=True):
        got = call()
        assert torch.equal(got, expected) if isinstance(got, Tensor) else got == expected
        assert len(versions) == most
    assert not torch._dynamo.utils.counters["graph_break"]


def test_graphs_of_compiled_steps(model: Showo, prompting: Prompting, versions: list[int]) -> None:
    """What is compiled is compiled before it is captured, and replayed as it is."""
    plain = generate_codes(model, prompting, [[1], [2, 3]], steps=3, guidance=1.0)
    recorder = Recorder(watched=False)  # under a mode that looks on torch compiles nothing
    model.compiled, model.graphs = compiled_steps(), Graphs(model, capture=recorder)
    for _ in range(2):
        assert torch.equal(generate_codes(model, prompting, [[1], [2, 3]], steps=3, guidance=1.0), plain)
    assert (len(versions), recorder.recorded, recorder.replayed) == (1, 1, 6)


def test_a_pipeline_that_is_compiled(checkpoint: Path, versions: list[int]) -> None:
    plain = ShowoPipeline.from_pretrained(checkpoint)
    pipe = ShowoPipeline.from_pretrained(checkpoint, compile=True)
    pictures = [p.generate("a", steps=2, seed=1)[0] for p in (plain, pipe)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert len(versions) == 2  # the step and the decoder


@pytest.mark.slow
def test_by_inductor(model: Showo, prompting: Prompting) -> None:
    plain = [generate_codes(model, prompting, [text], steps=3, guidance=1.0) for text in ([1], [2, 3])]
    model.compiled = compiled_steps()
    got = [generate_codes(model, prompting, [text], steps=3, guidance=1.0) for text in ([1], [2, 3])]
    assert all(map(torch.equal, got, plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
