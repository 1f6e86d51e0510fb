"""POST /v1/images/...: generations of a prompt, edits of a picture or beyond its edges, and variations of one."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response

from showo.engine.batching import Draw, DrawingDone, Extend, Inpaint, Progress, Ticket, Vary
from showo.engine.tasks.extend import Extension
from showo.errors import UserError
from showo.pictures import open_image
from showo.serve.errors import ApiError
from showo.serve.forms import read_form
from showo.serve.pictures import encode, read_mask
from showo.serve.schemas import AskedEdits, AskedPictures, AskedVariations
from showo.serve.serving import ThisVisit, Visit
from showo.serve.sse import frame, stream
from showo.text import clean_text

router = APIRouter()


@router.post("/v1/images/generations", response_model=None)
async def generations(asked: AskedPictures, visit: ThisVisit) -> dict[str, Any] | Response:
    seeds = _seeds(asked, visit)
    previews = bool(asked.partial_images)
    tickets = await visit.submit(lambda: [Draw(asked.prompt, asked.options(seed), previews) for seed in seeds])
    return await _Answering(visit, asked, "image_generation", seeds, pictures_read=0).answer(tickets)


@router.post("/v1/images/edits", response_model=None)
async def edits(request: Request, visit: ThisVisit) -> dict[str, Any] | Response:
    asked, files = await read_form(request, AskedEdits, ("image", "mask"))
    seeds = _seeds(asked, visit)
    make = _inpaints if asked.extend is None else _extends
    tickets = await visit.submit(lambda: make(asked, seeds, files, visit))
    return await _Answering(visit, asked, "image_edit", seeds, pictures_read=1).answer(tickets)


@router.post("/v1/images/variations", response_model=None)
async def variations(request: Request, visit: ThisVisit) -> dict[str, Any] | Response:
    asked, files = await read_form(request, AskedVariations, ("image", "other"))
    seeds = _seeds(asked, visit)
    tickets = await visit.submit(lambda: _varies(asked, seeds, files, visit))
    return await _Answering(visit, asked, "image_variation", seeds, pictures_read=len(files)).answer(tickets)


class _Answering:
    """What comes of tickets for pictures, as OpenAI writes it.

    kind: the first half of the names of events. pictures_read: for each that is drawn; they are of the size asked for.
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
        done = [each for each in drawn if isinstance(each, DrawingDone)]
        data = await self._visit.in_thread(
            lambda: [
                {"b64_json": self._encode(each.picture), "seed": seed}
                for each, seed in zip(done, self._seeds, strict=True)
            ]
        )
        return {"created": int(time.time()), "data": data, **self._facts(done[0].picture), "usage": self._usage(done)}

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
                usage = self._usage([event])
                yield frame(await self._event("completed", event.picture, usage=usage, seed=self._seeds[0]))

    async def _event(self, name: str, picture: Image.Image, **more: Any) -> dict[str, Any]:
        text = await self._visit.in_thread(lambda: self._encode(picture))
        facts = {"created_at": int(time.time()), **self._facts(picture)}
        return {"type": f"{self._kind}.{name}", "b64_json": text, **facts, **more}

    def _encode(self, picture: Image.Image) -> str:
        quality = 100 if self._asked.output_compression is None else self._asked.output_compression
        return encode(picture, self._format, quality)

    def _facts(self, picture: Image.Image) -> dict[str, Any]:
        size = f"{picture.width}x{picture.height}"
        return {"background": "opaque", "output_format": self._format, "quality": "auto", "size": size}

    def _usage(self, done: Sequence[DrawingDone]) -> dict[str, Any]:
        told = [self._asked.prompt, *(other.text for other in self._asked.also or ())]
        text = sum(len(self._pipe.text_tokenizer.encode(clean_text(each))) for each in told)
        read = self._read * math.prod(self._pipe.grid(self._asked.pixels))
        drawn = sum(each.codes.numel() for each in done)
        return {
            "input_tokens": text + read,
            "input_tokens_details": {"text_tokens": text, "image_tokens": read},
            "output_tokens": drawn,
            "total_tokens": text + read + drawn,
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


def _inpaints(asked: AskedEdits, seeds: Sequence[int], files: dict[str, bytes], visit: Visit) -> list[Inpaint]:
    picture = _open(files, "image", visit)
    name = "mask" if "mask" in files else "image"  # a picture may say itself where it is to be drawn anew
    mask = read_mask(files[name], name, visit.serving.limits.picture_pixels)
    previews = bool(asked.partial_images)
    return [
        Inpaint(asked.prompt, asked.options(seed), previews, picture=picture, mask=mask, blend=asked.blend)
        for seed in seeds
    ]


def _extends(asked: AskedEdits, seeds: Sequence[int], files: dict[str, bytes], visit: Visit) -> list[Extend]:
    """UserError for a picture that would become too large, before any work."""
    assert asked.extend is not None
    if "mask" in files:
        raise UserError("mask: with extend a picture is drawn on beyond its edges alone; leave the mask out")
    pipe, most = visit.serving.engine.pipe, visit.serving.limits.grown_pixels
    grown = Extension(pipe.grid(asked.pixels), pipe.grid(), asked.extend, asked.extend_by).grids()[-1]
    width, height = pipe.pixels(grown)
    if width * height > most:
        raise UserError(f"extend: the picture would have {width}x{height} pixels, more than {most}")
    picture = _open(files, "image", visit)
    return [
        Extend(
            asked.prompt,
            asked.options(seed),
            bool(asked.partial_images),
            picture=picture,
            directions=asked.extend,
            prompts=asked.extend_prompts,
            by=asked.extend_by,
            blend=asked.blend,
        )
        for seed in seeds
    ]


def _varies(asked: AskedVariations, seeds: Sequence[int], files: dict[str, bytes], visit: Visit) -> list[Vary]:
    picture, other = _open(files, "image", visit), _open(files, "other", visit) if "other" in files else None
    previews = bool(asked.partial_images)
    return [
        Vary(asked.prompt, asked.options(seed), previews, picture=picture, other=other, share=asked.share)
        for seed in seeds
    ]


def _open(files: dict[str, bytes], name: str, visit: Visit) -> Image.Image:
    return open_image(files[name], name, max_pixels=visit.serving.limits.picture_pixels)
