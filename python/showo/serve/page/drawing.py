"""How the page draws: the settings that its tabs share, and pictures that are shown while their masks resolve."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from showo.engine.batching import Draw, DrawingDone, Engine, EngineError, Progress
from showo.engine.options import Options
from showo.engine.samplers import SAMPLER_NAMES, find_sampler
from showo.engine.sampling import Sampling
from showo.errors import UserError
from showo.pictures import cover
from showo.serve.page.uploads import refusal

MAX_STEPS = 100
_SEEDS = 2**31  # new seeds are drawn below this

# A picture and what is said beside it.
Shown = tuple[Image.Image, str]
# How a step looks.
Show = Callable[[Progress], Image.Image]


@dataclass
class Settings:
    """The settings under all tabs that draw. `inputs` are their components, `options` makes them of their values."""

    sampling: Sampling
    inputs: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        with gr.Accordion("How it is drawn", open=False):
            with gr.Row():
                seed = gr.Number(
                    None, label="Seed (empty: a new one each time)", precision=0, minimum=0, elem_id="seed"
                )
                steps = gr.Slider(
                    1, MAX_STEPS, min(self.sampling.steps, MAX_STEPS), step=1, label="Steps", elem_id="steps"
                )
                guidance = gr.Slider(0, 20, self.sampling.guidance, label="Guidance")
            with gr.Row():
                sampler = gr.Dropdown(SAMPLER_NAMES, value="confidence", label="Sampler")
                temperature = gr.Slider(0, 3, 1, label="Temperature")
                negative = gr.Textbox(label="What it is to be unlike", max_lines=1)
        self.inputs = [seed, steps, guidance, sampler, temperature, negative]

    def options(self, values: tuple[Any, ...]) -> Options:
        """values: of `inputs`, in their order."""
        seed, steps, guidance, sampler, temperature, negative = values
        find_sampler(sampler)
        return {
            "seed": secrets.randbelow(_SEEDS) if seed is None else int(seed),
            "steps": int(steps),
            "guidance": guidance,
            "top_k": self.sampling.top_k,
            "sampler": sampler,
            "temperature": temperature,
            "negative_prompt": negative or None,
        }


def as_now(progress: Progress) -> Image.Image:
    """The picture of a step, grey where its codes are still to be chosen."""
    assert progress.picture is not None
    return cover(progress.picture, progress.masked)


async def drawn(engine: Engine, begin: Callable[[], tuple[Draw, Show]]) -> AsyncIterator[Shown]:
    """The pictures of a request, step by step, and at last the finished one.

    begin: makes the request, and how its steps look. gr.Error says what is wrong with it.
    """
    try:
        request, show = begin()
        async for event in await asyncio.to_thread(engine.submit, request):
            if isinstance(event, Progress):
                yield show(event), f"step {event.step + 1} of {event.steps}"
            elif isinstance(event, DrawingDone):
                yield event.picture, f"seed {request.options['seed']}"
    except (UserError, EngineError, TypeError) as error:
        raise refusal(error) from error
