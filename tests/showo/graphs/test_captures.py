"""Captures: what none may hold, and where there can be none. What they ask of torch: test_capture_calls.py."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.engine import open_canvas
from showo.engine.generate import generate_codes
from showo.engine.growing import GrowingText
from showo.engine.pipeline import ShowoPipeline
from showo.engine.samplers import Filling
from showo.errors import UserError
from showo.model import graphs as graphs_module
from showo.model.graphs import Graphs, Key, Step, capture
from showo.model.quantize import quantize
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext import omni_attention, reference
from tests.showo.conftest import small_model
from tests.showo.graphs.stand_in import Recorder
from tests.showo.graphs.steps import CODES, TEXTS, Counting, pictures, texts_after, used

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
