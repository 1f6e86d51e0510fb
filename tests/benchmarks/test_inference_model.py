"""The predicted times of pictures and answers: what they are made of, and that the page shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.inference_model import LAUNCHES_AROUND, LAUNCHES_OF_BLOCK, PROMPT, forward, step, table, token
from showo.config import official
from showo.gpus import GPUS
from showo.train.plan.kernels import LAUNCH, MEMORY_SHARE

A100 = GPUS["a100-80"]
CONFIG = official()


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert table(A100) in page


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
