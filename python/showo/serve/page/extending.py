"""The tab that draws a picture on beyond its edges: an arrow on each side of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from PIL import Image

from showo.engine.batching import Engine, Extend, Progress
from showo.engine.options import Options
from showo.engine.tasks.extend import Extension
from showo.errors import UserError
from showo.pictures import MASKED_GREY
from showo.serve.page.drawing import Show, as_now, drawn
from showo.serve.page.tabs import HEIGHT, Built, Maker, Taker, needed, prompt_box, told_box
from showo.serve.page.uploads import on_upload, picture_box

MAX_SIDES = 16  # training sides that a canvas may be long, and high
MAX_UNDO = 20
ARROWS = {"up": "↑", "left": "←", "right": "→", "down": "↓"}

# The canvases of a session, the newest last.
History = list[Image.Image]


class Growth:
    """A canvas that grows on one side, and how that looks meanwhile. UserError for one that would grow too large."""

    def __init__(self, engine: Engine, canvas: Image.Image, direction: str) -> None:
        pipe = engine.pipe
        window = pipe.grid()
        extension = Extension(pipe.grid(canvas.size), window, [direction])
        grown = extension.grids()[-1]
        if any(side > MAX_SIDES * seen for side, seen in zip(grown, window)):
            width, height = pipe.pixels((MAX_SIDES * window[0], MAX_SIDES * window[1]))
            raise UserError(f"a picture may grow to {width}x{height} pixels here: it cannot grow {direction} any more")
        self._corners, self._factor = extension.corners(0), pipe.image_config.downsampling
        self._shown = Image.new("RGB", pipe.pixels(grown), MASKED_GREY)
        top, left = extension.corner()
        self._shown.paste(canvas, (left * self._factor, top * self._factor))

    def show(self, progress: Progress) -> Image.Image:
        """The whole canvas, with the window that is drawn in its place; windows before it stay as they were last."""
        top, left = self._corners[progress.step * len(self._corners) // progress.steps]
        self._shown.paste(as_now(progress), (left * self._factor, top * self._factor))
        return self._shown.copy()


def extend_tab(make: Maker) -> Built:
    with gr.Row():
        with gr.Column(scale=2):
            prompt = prompt_box("extend", "a blue ring")
            keep = gr.Checkbox(False, label="Keep the picture's own pixels (a seam may be seen)")
            with gr.Row():
                undo, stop = gr.Button("Undo", elem_id="extend-undo"), gr.Button("Stop", elem_id="extend-stop")
            told = told_box("extend")
        with gr.Column(scale=3):
            up = _arrow("up")
            with gr.Row(equal_height=True):
                left = _arrow("left")
                picture = picture_box(label="Picture", height=HEIGHT, elem_id="extend-picture", scale=8)
                right = _arrow("right")
            down = _arrow("down")
    history = gr.State([])
    running = [
        arrow.click(
            _growing(make, direction),
            [history, prompt, keep, *make.settings.inputs],
            [picture, told, history],
            show_progress="hidden",
            trigger_mode="once",
        )
        for direction, arrow in {"up": up, "left": left, "right": right, "down": down}.items()
    ]

    def opened(given: Image.Image | None) -> tuple[Image.Image | None, History]:
        canvas = make.fitted(given)
        return canvas, [] if canvas is None else [canvas]

    def undone(canvases: History) -> tuple[Image.Image | None, History]:
        left = canvases[:-1] or canvases
        return (left[-1] if left else None), left

    on_upload(picture, opened, [picture, history])
    picture.clear(list, None, history)
    undo.click(undone, history, [picture, history], cancels=running)
    stop.click(lambda canvases: canvases[-1] if canvases else None, history, picture, cancels=running)
    return Built(picture, Taker("extend", [picture, history], lambda given: [*opened(given)]))


def _arrow(direction: str) -> gr.Button:
    return gr.Button(ARROWS[direction], elem_id=f"extend-{direction}", min_width=40)


def _growing(make: Maker, direction: str) -> Callable[..., AsyncIterator[tuple[Image.Image, str, History]]]:
    """What an arrow does."""

    async def handler(
        canvases: History, prompt: str, keep: bool, *settings: Any
    ) -> AsyncIterator[tuple[Image.Image, str, History]]:
        def begin() -> tuple[Extend, Show]:
            canvas = needed(canvases[-1] if canvases else None)
            growth = Growth(make.engine, canvas, direction)
            options: Options = {**make.settings.options(settings), "size": canvas.size}
            blend = make.fade if keep else None
            request = Extend(prompt, options, previews=True, picture=canvas, directions=[direction], blend=blend)
            return request, growth.show

        async for shown, said in drawn(make.engine, begin):
            yield shown, said, canvases
        yield shown, said, [*canvases, shown][-MAX_UNDO:]

    return handler
