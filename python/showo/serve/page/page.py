"""The page: tabs to draw, inpaint, extend, vary and ask, on one engine; a picture goes from tab to tab by a button."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import Image

from showo.engine.batching import Engine
from showo.errors import UserError
from showo.pictures import fit
from showo.serve.page.asking import ask_tab
from showo.serve.page.drawing import Settings
from showo.serve.page.extending import extend_tab
from showo.serve.page.tabs import Maker, Taker, generate_tab, inpaint_tab, vary_tab
from showo.serve.page.uploads import refusal

_TABS = {
    "generate": ("Generate", generate_tab),
    "inpaint": ("Inpaint", inpaint_tab),
    "extend": ("Extend", extend_tab),
    "vary": ("Vary", vary_tab),
    "ask": ("Ask", ask_tab),
}
_KEPT_SECONDS = 6 * 3600  # pictures that the page has shown or taken lie in files for so long
_SMALL = 128  # pixels up to which single pixels are shown, instead of a blur


class Page(gr.Blocks):  # type: ignore[misc]
    """gradio's page, but for files that a request names by an address in the network: gradio would fetch them."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *others: Any, **named: Any) -> Any:
        traverse(inputs, _refuse_address, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *others, **named)


def build_page(engine: Engine) -> Page:
    """The page over an engine; `showo.serve.page.app` serves it."""
    pipe = engine.pipe
    with Page(title="Show-o", analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS)) as page:
        with gr.Tabs() as tabs:
            boxes = {name: gr.Tab(label, id=name) for name, (label, _) in _TABS.items()}
        make = Maker(engine, Settings(pipe.sampling), pipe.pixels(pipe.grid()))
        built = {}
        for name, (_, tab) in _TABS.items():
            with boxes[name]:
                built[name] = tab(make)
        for name, one in built.items():
            if one.result is not None:
                with boxes[name], gr.Row():
                    for other in built.values():
                        if other.taker is not None and other.taker.tab != name:
                            _add_sender(make, tabs, name, one.result, other.taker)
    page.queue(default_concurrency_limit=None, api_open=False)  # the engine has the queue, and its limits
    return page


def style(engine: Engine) -> str:
    """CSS: pictures fill their boxes, small ones with square pixels."""
    sharp = "image-rendering: pixelated;" if max(engine.pipe.pixels(engine.pipe.grid())) <= _SMALL else ""
    return f".image-frame img {{ width: 100%; height: 100%; object-fit: contain; {sharp} }} footer {{ display: none }}"


def _add_sender(make: Maker, tabs: gr.Tabs, name: str, result: gr.Image, taker: Taker) -> None:
    def send(picture: Image.Image | None) -> list[Any]:
        if picture is None:
            raise refusal(UserError("there is no picture yet"))
        return [*taker.values(fit(picture, make.size)), gr.Tabs(selected=taker.tab)]

    button = gr.Button(f"→ {_TABS[taker.tab][0]}", size="sm", elem_id=f"{name}-to-{taker.tab}")
    button.click(send, result, [*taker.outputs, tabs], show_progress="hidden")


def _refuse_address(file: dict[str, Any]) -> dict[str, Any]:
    if is_http_url_like(str(file["path"])) or file.get("is_stream"):
        raise gr.Error("a picture must be uploaded", print_exception=False)
    return file
