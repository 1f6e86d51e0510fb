"""Pictures on their way from and to the browser. `showo.pictures` decodes them, within its limits, and never gradio.

Gradio asks a component's `preprocess` for what an event handler gets, and its `postprocess` for what the browser gets.
Here these methods are replaced on each component, not in a subclass, because gradio writes a stub file beside the
source of every subclass of a component.
"""

from __future__ import annotations

import html
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from showo.errors import UserError, shortened
from showo.pictures import encode_png, open_image

MAX_BYTES = 32 * 1024 * 1024  # of one upload
MAX_PAINTINGS = 32  # canvases on their way from a browser to a handler; the oldest one is dropped for a new one


@dataclass(frozen=True)
class Painted:
    """What an editor holds: an upright RGB picture, and a grey mask of its size, white where a brush has painted."""

    picture: Image.Image
    mask: Image.Image


def refusal(error: Exception) -> gr.Error:
    """An error as the page shows it. Gradio shows messages as HTML, and this one may quote the user's text."""
    return gr.Error(html.escape(shortened(str(error))), print_exception=False)


def picture_box(**settings: Any) -> gr.Image:
    """A box to drop, paste or open a picture in; handlers get it as upright RGB, or None where the box is empty."""
    return _in_files(gr.Image(sources=["upload", "clipboard"], interactive=True, **settings), _opened)


def result_box(**settings: Any) -> gr.Image:
    """A box that shows what was drawn; handlers get it as `picture_box` gives it."""
    return _in_files(gr.Image(interactive=False, buttons=["download"], **settings), _opened)


def brush_box(size: tuple[int, int], **settings: Any) -> gr.ImageEditor:
    """An editor with a brush for a picture of `size` (width, height); handlers get `Painted`, or None."""
    box = gr.ImageEditor(
        sources=["upload", "clipboard"],
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(default_size=max(1, max(size) // 6), colors=[("#ff00ff", 0.7)], color_mode="fixed"),
        canvas_size=size,
        **settings,
    )
    paintings = _Paintings()
    box.accept_blobs = paintings.accept_blobs
    return _in_files(box, paintings.taken)


def _in_files(box: Any, taken: Callable[[Any], Any]) -> Any:
    """The box with `taken` for what handlers get, whose pictures go to the browser as files that never change.

    Gradio would name a file by its content, and write the same file anew for each time that the picture is shown: a
    browser that reads it meanwhile gets a broken picture.

    No handler may return gr.update() or gr.skip() for such a box: gradio would then make the box anew for that visitor,
    without these methods.
    """
    shown = box.postprocess

    def written(picture: Image.Image | None) -> Any:
        if picture is None:
            return shown(None)
        path = Path(box.GRADIO_CACHE, f"show-o-{secrets.token_hex(16)}.png")
        path.write_bytes(encode_png(picture))
        return shown(str(path))

    box.preprocess, box.postprocess = taken, written
    return box


def on_upload(box: Any, then: Callable[[Any], Any], outputs: list[Any]) -> None:
    """What happens when the user opens a file in a box: its outputs become `then` of what handlers get of the box.

    A file that is no picture is as good as none: a warning says why, and the box is empty again.
    """

    def opened(payload: dict[str, Any] | None) -> Any:
        try:
            value = box.preprocess(None if payload is None else box.data_model(**payload))
        except gr.Error as error:
            gr.Warning(error.message)
            value = None
        return then(value)

    box.upload(opened, box, outputs, preprocess=False, show_progress="hidden")


def _opened(payload: Any) -> Image.Image | None:
    """payload: gradio's ImageData, whose path gradio has found to lie in the folder of uploads."""
    if payload is None:
        return None
    if payload.path is None:  # a picture that is written out in the request itself; the page sends none
        raise gr.Error("a picture must be uploaded", print_exception=False)
    return _read(Path(payload.path))


def _read(source: bytes | Path, convert: Callable[[Image.Image, str], Image.Image] | None = None) -> Image.Image:
    try:
        if isinstance(source, Path):
            if not source.is_file():
                raise UserError("this picture is not here any more: open it again")
            source = source.read_bytes()  # so that a message names no path of this machine
        return open_image(source, "this file", convert)
    except UserError as error:
        raise refusal(error) from error


class _Paintings:
    """What editors send ahead of a handler: their canvas as PNG files, under an id of the browser's choice.

    As gradio's own editor keeps them, but for the limits: a layer's number is not trusted with the length of a list,
    and what no handler ever asks for does not stay.
    """

    def __init__(self) -> None:
        self._parts: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def accept_blobs(self) -> Callable[[Any], None]:
        """What gradio calls by this name when the browser sends a part of a canvas."""

        def accept_blobs(data: gr.components.image_editor.AcceptBlobs) -> None:
            kind, key = str(data.data["type"]), str(data.data["id"])
            if kind == "composite" or not data.files or len(data.files[0][1]) > MAX_BYTES:
                return
            with self._lock:
                self._parts.setdefault(key, {})[kind] = data.files[0][1]
                self._parts.move_to_end(key)
                while len(self._parts) > MAX_PAINTINGS:
                    self._parts.popitem(last=False)

        accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
        return accept_blobs

    def taken(self, payload: Any) -> Painted | None:
        """payload: gradio's EditorData, with the id of parts that came before, or with files."""
        if payload is None:
            return None
        if payload.id is not None:
            with self._lock:
                parts: dict[str, bytes | Path] = dict(self._parts.pop(payload.id, {}))
        else:
            files = {"background": payload.background, "layer": next(iter(payload.layers), None)}
            parts = {kind: Path(file.path) for kind, file in files.items() if file is not None}
        if "background" not in parts:
            return None
        picture = _read(parts["background"])
        if "layer" not in parts:
            return Painted(picture, Image.new("L", picture.size))
        return Painted(picture, _read(parts["layer"], _touched))


def _touched(layer: Image.Image, name: str) -> Image.Image:
    """White where a layer is not wholly transparent."""
    return layer.convert("RGBA").getchannel("A").point([0] + [255] * 255)
