"""Graphs that are recorded, and real ones where there is a GPU."""

import pytest

from showo.model.graphs import Graphs
from showo.model.transformer import Showo
from tests.showo.graphs.stand_in import Recorder
from tests.showo.graphs.steps import Counting


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.gpu)])
def graphs(model: Showo, request: pytest.FixtureRequest) -> Graphs:
    """Of the model, which is put on a GPU where there is one; it does not use them yet."""
    if request.param == "cuda":
        return Graphs(model.cuda(), capture=Counting())
    return Graphs(model, capture=Recorder())
