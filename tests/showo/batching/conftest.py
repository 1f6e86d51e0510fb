"""An engine with a small random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from showo.engine.batching import Engine
from showo.engine.pipeline import ShowoPipeline


@pytest.fixture
def pipe(checkpoint: Path) -> ShowoPipeline:
    return ShowoPipeline.from_pretrained(checkpoint)


@pytest.fixture
def engine(pipe: ShowoPipeline) -> Iterator[Engine]:
    with Engine(pipe) as engine:
        yield engine
