"""The predicted times of pictures and answers: what they are made of, and that the page shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.inference_model import (
    LAUNCHES_AROUND,
    LAUNCHES_OF_BLOCK,
    LAUNCHES_OF_PICTURE,
    PROMPT,
    forward,
    serving_table,
    step,
    table,
    token,
)
from showo.config import official
from showo.engine.batching import Draw, Engine
from showo.engine.batching.drawing import OpenPicture
from showo.engine.pipeline import ShowoPipeline
from showo.gpus import GPUS
from showo.train.plan.kernels import LAUNCH, MEMORY_SHARE

A100 = GPUS["a100-80"]
CONFIG = official()


DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_show_the_tables() -> None:
    assert table(A100) in (DOCS / "performance.md").read_text(encoding="utf-8")
    assert serving_table(A100) in (DOCS / "serving.md").read_text(encoding="utf-8")


class Launches(TorchDispatchMode):
    """How many kernels a GPU would run of what is done inside."""

    LOOKS = ("select", "slice", "view", "detach", "promote_types", "to", "is_nonzero")  # at what there is already
    SEVERAL = (("isfinite", 3), ("resample", 2))

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2].partition(".")[0]
        self.count += 0 if name in self.LOOKS else dict(self.SEVERAL).get(name, 1)
        return function(*args, **(kwargs or {}))


def test_the_launches_of_a_picture_in_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, advance = [], OpenPicture.advance

    def counted(picture: OpenPicture, logits: Tensor) -> bool:
        with Launches() as launches:
            begun = advance(picture, logits)
        counts.append(launches.count)
        return begun

    monkeypatch.setattr(OpenPicture, "advance", counted)
    with Engine(ShowoPipeline.from_pretrained()) as engine:
        engine.submit(Draw("a", {"steps": 3})).result()
    copies = 2  # of codes and mask to the CPU, which are there already here
    # The last step decodes the picture besides.
    assert [count + copies for count in counts[:-1]] == [LAUNCHES_OF_PICTURE] * 2


def test_a_step_multiplies_what_it_needs_alone() -> None:
    """FLOPs at the rate of matrix products: the last layer's q, MLP and the head leave the marks out."""
    hidden, places, rows = CONFIG.hidden_size, CONFIG.num_vq_tokens + 2, 2
    weights = 4 * hidden**2 + 2 * hidden * CONFIG.intermediate_size
    seen = CONFIG.num_layers * places * weights - 2 * (weights - 2 * hidden**2)
    flops = 2 * rows * (seen + CONFIG.num_vq_tokens * hidden * CONFIG.codebook_size)
    assert step(CONFIG, A100, 1).parts["products"] == pytest.approx(flops / (A100.products * A100.bf16), rel=1e-3)


def test_a_token_reads_the_weights_once() -> None:
    hidden = CONFIG.hidden_size
    weights = CONFIG.num_layers * (4 * hidden**2 + 2 * hidden * CONFIG.intermediate_size)
    read = 2 * (weights + hidden * CONFIG.text_vocab_size) / (MEMORY_SHARE * A100.memory)
    assert token(CONFIG, A100, 1).parts["products"] == pytest.approx(read, rel=0.01)
    launches = LAUNCHES_OF_BLOCK * CONFIG.num_layers + LAUNCHES_AROUND
    assert token(CONFIG, A100, 1).hosted == pytest.approx(8e-6 * launches)
    assert token(CONFIG, A100, 1).parts["gaps"] == pytest.approx(LAUNCH * (launches - CONFIG.num_layers))


def test_more_rows_and_longer_prompts_take_more() -> None:
    one, two = (step(CONFIG, A100, pictures).device for pictures in (1, 2))
    assert 1.5 < two / one < 2
    short, long = (forward(CONFIG, A100, 2, 258, 256, before, 8192).parts["attention"] for before in (PROMPT, 128))
    assert short < long
