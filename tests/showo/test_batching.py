"""The engine: requests that come and go get what they would get alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from showo.engine.batching import Answer, AnswerDone, Draw, DrawingDone, Engine, Extend, Inpaint, Progress, Vary
from showo.engine.pipeline import ShowoPipeline


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator).numpy())


@pytest.fixture
def pipe(checkpoint: Path) -> ShowoPipeline:
    return ShowoPipeline.from_pretrained(checkpoint)


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
        print(engine.facts())
