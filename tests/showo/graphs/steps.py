"""What the tests of CUDA graphs draw and say, with graphs and without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from showo.engine.session import Session
from showo.model.graphs import Graphs, capture
from showo.model.transformer import Showo
from showo.prompting import Prompting

CODES = 16
TEXTS = [[1, 2, 3], [], [5] * 20, [7]]
QUESTIONS = [[1], [2, 3, 4, 5], [6, 7]]
SAMPLERS = ("confidence", "linear-temperature", "halton", "entropy-bound:4", "remask:0.3")


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
