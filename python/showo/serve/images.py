"""POST /v1/images/generations and /v1/images/edits: pictures of a prompt, and pictures drawn anew in part."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from showo.engine.batching import Draw, DrawingDone, Inpaint, Progress, Ticket
from showo.pictures import open_image
from showo.serve.errors import ApiError
from showo.serve.pictures import encode, read_mask
from showo.serve.schemas import AskedEdits, AskedPictures
from showo.serve.serving import ThisVisit, Visit
from showo.serve.sse import frame, stream
from showo.text import clean_text

router = APIRouter()
_FILES = {"image": "image", "image[]": "image", "mask": "mask"}  # fields of forms that are files
_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 256 * 1024


@router.post("/v1/images/generations", response_model=None)
async def generations(asked: AskedPictures, visit: ThisVisit) -> dict[str, Any] | Response:
    seeds = _seeds(asked, visit)
    previews = bool(asked.partial_images)
    tickets = await visit.submit(lambda: [Draw(asked.prompt, asked.options(seed), previews) for seed in seeds])
    return await _Answering(visit, asked, "image_generation", seeds, pictures_read=0).answer(tickets)


@router.post("/v1/images/edits", response_model=None)
async def edits(request: Request, visit: ThisVisit) -> dict[str, Any] | Response:
    asked, files = await _read_form(request)
    seeds = _seeds(asked, visit)
    tickets = await visit.submit(lambda: _edits(asked, seeds, files, visit.serving.limits.picture_pixels))
    return await _Answering(visit, asked, "image_edit", seeds, pictures_read=1).answer(tickets)


class _Answering:
    """What comes of tickets for pictures, as OpenAI writes it.

    kind: the first half of the names of events. pictures_read: for each that is drawn.
    """

    def __init__(self, visit: Visit, asked: AskedPictures, kind: str, seeds: Sequence[int], pictures_read: int) -> None:
        self._visit, self._asked, self._kind, self._seeds = visit, asked, kind, seeds
        self._pipe, self._read = visit.serving.engine.pipe, pictures_read
        self._format = asked.output_format or "png"

    async def answer(self, tickets: Sequence[Ticket]) -> dict[str, Any] | Response:
        if self._asked.stream:
            events = aiter(tickets[0])
            first = await anext(events)  # so that what goes wrong in the queue has a status
            return stream(self._frames(first, events))
        drawn = await asyncio.gather(*(ticket.finished() for ticket in tickets))
        pictures = [done.picture for done in drawn if isinstance(done, DrawingDone)]
        data = await self._visit.in_thread(
            lambda: [{"b64_json": self._encode(p), "seed": seed} for p, seed in zip(pictures, self._seeds, strict=True)]
        )
        return {"created": int(time.time()), "data": data, **self._facts(len(pictures))}

    async def _frames(self, first: Any, events: AsyncIterator[Any]) -> AsyncIterator[str]:
        shown = 0
        async for event in _chain(first, events):
            if isinstance(event, Progress):
                wanted = self._asked.partial_images or 0
                due = event.steps * (shown + 1) / (wanted + 1)  # previews at equal distances, before the picture
                if event.picture is None or shown >= wanted or not due <= event.step + 1 < event.steps:
                    continue
                yield frame(await self._event("partial_image", event.picture, partial_image_index=shown))
                shown += 1
            elif isinstance(event, DrawingDone):
                usage = self._facts(1)["usage"]
                yield frame(await self._event("completed", event.picture, usage=usage, seed=self._seeds[0]))

    async def _event(self, name: str, picture: Image.Image, **more: Any) -> dict[str, Any]:
        text = await self._visit.in_thread(lambda: self._encode(picture))
        facts = {name: value for name, value in self._facts(1).items() if name != "usage"}
        return {"type": f"{self._kind}.{name}", "b64_json": text, "created_at": int(time.time()), **facts, **more}

    def _encode(self, picture: Image.Image) -> str:
        quality = 100 if self._asked.output_compression is None else self._asked.output_compression
        return encode(picture, self._format, quality)

    def _facts(self, count: int) -> dict[str, Any]:
        grid = self._pipe.grid(self._asked.pixels)
        width, height = self._pipe.pixels(grid)
        text = len(self._pipe.text_tokenizer.encode(clean_text(self._asked.prompt)))
        codes = grid[0] * grid[1]
        read = self._read * codes
        usage = {
            "input_tokens": text + read,
            "input_tokens_details": {"text_tokens": text, "image_tokens": read},
            "output_tokens": count * codes,
            "total_tokens": text + read + count * codes,
        }
        size = f"{width}x{height}"
        return {
            "background": "opaque",
            "output_format": self._format,
            "quality": "auto",
            "size": size,
            "usage": usage,
        }


async def _chain(first: Any, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for event in events:
        yield event


def _seeds(asked: AskedPictures, visit: Visit) -> list[int]:
    """One for each picture that is asked for; ApiError for a model or a number that cannot be had."""
    visit.serving.check_model(asked.model)
    most, count = visit.serving.limits.pictures, asked.n or 1
    if count > most:
        raise ApiError(400, f"n: at most {most} pictures can be asked for at a time", code="invalid_value", param="n")
    first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    return list(range(first, first + count))


def _edits(asked: AskedEdits, seeds: Sequence[int], files: dict[str, bytes], max_pixels: int) -> list[Inpaint]:
    picture = open_image(files["image"], "image", max_pixels=max_pixels)
    name = "mask" if "mask" in files else "image"  # a picture may say itself where it is to be drawn anew
    mask = read_mask(files[name], name, max_pixels)
    previews = bool(asked.partial_images)
    return [
        Inpaint(asked.prompt, asked.options(seed), previews, picture=picture, mask=mask, blend=asked.blend)
        for seed in seeds
    ]


async def _read_form(request: Request) -> tuple[AskedEdits, dict[str, bytes]]:
    """The fields and the files of a form; ApiError for one that is not as it should be."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "The body must be a form, sent as Content-Type: multipart/form-data", code="no_form")
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=4, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            known = _FILES.get(name)
            if isinstance(value, UploadFile) != (known is not None):
                expected = "a file" if known is not None else "no file"
                raise ApiError(400, f"{name[:100]}: expected {expected}", code="invalid_value", param=name[:100])
            if (known or name) in (fields, files)[known is not None]:
                raise ApiError(400, f"{name[:100]}: is given twice", code="invalid_value", param=name[:100])
            if known is not None and isinstance(value, UploadFile):
                files[known] = await value.read()
            else:
                fields[name] = value
    if "image" not in files:
        raise ApiError(400, "image: is missing", code="missing_required_parameter", param="image")
    try:
        return AskedEdits.model_validate(fields, strict=False), files
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
