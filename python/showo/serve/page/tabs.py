"""The tabs that draw: each is a form whose button makes a request of the engine and shows what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from showo.engine.batching import Draw, Engine, Inpaint, Vary
from showo.errors import UserError
from showo.pictures import fit
from showo.serve.page.drawing import Settings, Shown, as_now, drawn
from showo.serve.page.uploads import Painted, brush_box, on_upload, picture_box, result_box

Box = TypeVar("Box")  # what handlers get of a box
HEIGHT = 400  # of a picture's box, in pixels of the screen


@dataclass(frozen=True)
class Taker:
    """A tab that takes a picture from another one: what of it changes then, and to which values."""

    tab: str
    outputs: list[Any]
    values: Callable[[Image.Image], list[Any]]


@dataclass(frozen=True)
class Built:
    """A tab as far as others see it. result: the box of what it has drawn, if it draws. taker: if it takes pictures."""

    result: gr.Image | None = None
    taker: Taker | None = None


@dataclass(frozen=True)
class Maker:
    """What tabs are made with. size: (width, height) in pixels of what the model sees."""

    engine: Engine
    settings: Settings
    size: tuple[int, int]

    @property
    def fade(self) -> int:
        """Over how many pixels new ones fade into those that are kept: half of a code's patch."""
        return self.engine.pipe.image_config.downsampling // 2

    def fitted(self, picture: Image.Image | None) -> Image.Image | None:
        """A picture that was opened, as the model sees it."""
        return None if picture is None else fit(picture, self.size)

    def on_draw(
        self, button: gr.Button, request: Callable[..., Draw], inputs: list[Any], result: gr.Image, told: gr.Textbox
    ) -> Any:
        """request: (options, values of the inputs) -> what is drawn when the button is pressed."""

        async def handler(*values: Any) -> AsyncIterator[Shown]:
            own, settings = values[: len(inputs)], values[len(inputs) :]
            begin = lambda: (request(self.settings.options(settings), *own), as_now)  # noqa: E731
            async for shown in drawn(self.engine, begin):
                yield shown

        return button.click(handler, [*inputs, *self.settings.inputs], [result, told], show_progress="minimal")


def prompt_box(name: str, value: str) -> gr.Textbox:
    return gr.Textbox(value, label="Prompt", max_lines=3, elem_id=f"{name}-prompt")


def buttons(name: str, text: str) -> tuple[gr.Button, gr.Button]:
    """The one that draws, and the one that stops drawing."""
    with gr.Row():
        return gr.Button(text, variant="primary", elem_id=f"{name}-go"), gr.Button("Stop", elem_id=f"{name}-stop")


def result_column(name: str) -> tuple[gr.Image, gr.Textbox]:
    with gr.Column():
        result = result_box(label="Picture", height=HEIGHT, elem_id=f"{name}-result")
        return result, told_box(name)


def told_box(name: str) -> gr.Textbox:
    return gr.Textbox(show_label=False, interactive=False, max_lines=1, elem_id=f"{name}-told", container=False)


def needed(picture: Box | None) -> Box:
    if picture is None:
        raise UserError("open a picture first")
    return picture


def generate_tab(make: Maker) -> Built:
    with gr.Row():
        with gr.Column():
            prompt = prompt_box("generate", "a red star and a blue ring")
            go, stop = buttons("generate", "Draw")
        result, told = result_column("generate")

    def request(options: Any, prompt: str) -> Draw:
        return Draw(prompt, options, previews=True)

    stop.click(None, cancels=make.on_draw(go, request, [prompt], result, told))
    return Built(result)


def inpaint_tab(make: Maker) -> Built:
    with gr.Row():
        with gr.Column():
            editor = brush_box(make.size, label="Paint over what is to change", height=HEIGHT, elem_id="inpaint-editor")
            prompt = prompt_box("inpaint", "a blue star and a red circle")
            keep = gr.Checkbox(True, label="Keep all other pixels as they are")
            go, stop = buttons("inpaint", "Draw anew")
        result, told = result_column("inpaint")

    def request(options: Any, painted: Painted | None, prompt: str, keep: bool) -> Inpaint:
        painted = needed(painted)
        if not painted.mask.getbbox():
            raise UserError("paint over a part of the picture first")
        blend = make.fade if keep else None
        return Inpaint(prompt, options, previews=True, picture=painted.picture, mask=painted.mask, blend=blend)

    stop.click(None, cancels=make.on_draw(go, request, [editor, prompt, keep], result, told))
    return Built(result, Taker("inpaint", [editor], lambda picture: [picture]))


def vary_tab(make: Maker) -> Built:
    with gr.Row():
        with gr.Column():
            with gr.Row():
                picture = picture_box(label="Picture", height=HEIGHT // 2, elem_id="vary-picture")
                other = picture_box(label="Mix with (optional)", height=HEIGHT // 2, elem_id="vary-other")
            prompt = prompt_box("vary", "a red star and a blue ring")
            share = gr.Slider(0.05, 1, 0.5, label="Share that is drawn anew, or that the other picture has")
            go, stop = buttons("vary", "Vary")
        result, told = result_column("vary")

    def request(options: Any, picture: Any, other: Any, prompt: str, share: float) -> Vary:
        return Vary(prompt, options, previews=True, picture=needed(picture), other=other, share=share)

    for box in (picture, other):
        on_upload(box, make.fitted, [box])
    stop.click(None, cancels=make.on_draw(go, request, [picture, other, prompt, share], result, told))
    return Built(result, Taker("vary", [picture], lambda given: [given]))
