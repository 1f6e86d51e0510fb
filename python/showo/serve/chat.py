"""POST /v1/chat/completions: questions about pictures, and talks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from showo.engine.batching import Answer, AnswerDone, Piece
from showo.engine.tasks.chat import as_seen
from showo.engine.understand import MAX_NEW_TOKENS
from showo.errors import UserError
from showo.pictures import open_image
from showo.serve.pictures import bytes_of_url
from showo.serve.schemas import AskedChat, Message, PicturePart
from showo.serve.serving import ThisVisit, Visit
from showo.serve.sse import frame, stream

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def completions(asked: AskedChat, visit: ThisVisit) -> dict[str, Any] | Response:
    visit.serving.check_model(asked.model)
    (ticket,) = await visit.submit(lambda: [_request(asked, visit)])
    writing = _Writing(visit.serving.name)
    if asked.stream:
        events = aiter(ticket)
        first = await anext(events)  # so that what goes wrong in the queue has a status
        counted = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return stream(writing.frames(first, events, counted))
    done = await ticket.finished()
    assert isinstance(done, AnswerDone)
    message = {"role": "assistant", "content": done.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(done)}
    return {**writing.head("chat.completion"), "choices": [choice], "usage": _usage(done)}


class _Writing:
    """An answer as OpenAI writes it."""

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    async def frames(self, first: Any, events: AsyncIterator[Any], counted: bool) -> AsyncIterator[str]:
        yield self._frame({"role": "assistant", "content": ""})
        done = first
        if isinstance(first, Piece):
            yield self._frame({"content": first.text})
            async for done in events:
                if isinstance(done, Piece):
                    yield self._frame({"content": done.text})
        assert isinstance(done, AnswerDone)
        yield self._frame({}, _reason(done))
        if counted:
            yield frame({**self.head("chat.completion.chunk"), "choices": [], "usage": _usage(done)})
        yield "data: [DONE]\n\n"

    def _frame(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return frame({**self.head("chat.completion.chunk"), "choices": [choice]})


def _reason(done: AnswerDone) -> str:
    return "stop" if done.finished else "length"


def _usage(done: AnswerDone) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.tokens,
        "total_tokens": done.prompt_tokens + done.tokens,
    }


def _request(asked: AskedChat, visit: Visit) -> Answer:
    """What the engine is asked. UserError for a talk that the model cannot have."""
    turns = asked.messages
    for number, message in enumerate(turns):
        if message.role != ("user", "assistant")[number % 2]:
            raise UserError("messages: must be of user and assistant in turn, beginning with user")
    if turns[-1].role != "user":
        raise UserError("messages: the last one must be of the user")
    pictures = [part.image_url.url for part in _parts(turns[0]) if isinstance(part, PicturePart)]
    for message in turns[1:]:
        if any(isinstance(part, PicturePart) for part in _parts(message)):
            raise UserError("messages: this model sees all pictures before the talk; send them with the first message")
    texts = [_text(message) for message in turns]
    first = texts[0] or (None if pictures else "")  # nothing but pictures asks for a caption
    questions = [first, *texts[2::2]]
    answers = [text or "" for text in texts[1::2]]
    given = {"temperature": asked.temperature, "top_k": asked.top_k, "top_p": asked.top_p, "seed": asked.seed}
    return Answer(
        _open(pictures, asked, visit),
        questions[-1],
        list(zip(questions, answers)),
        size=asked.pixels,
        max_new_tokens=asked.max_completion_tokens or asked.max_tokens or MAX_NEW_TOKENS,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def _parts(message: Message) -> list[Any]:
    return [] if isinstance(message.content, str) else message.content


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if not isinstance(part, PicturePart))


def _open(urls: list[str], asked: AskedChat, visit: Visit) -> list[Any]:
    """The pictures as the model sees them, each made so before the next is opened: they take little memory."""
    pipe, most = visit.serving.engine.pipe, visit.serving.limits.picture_pixels
    opened = (open_image(bytes_of_url(url), f"picture {n}", max_pixels=most) for n, url in enumerate(urls, start=1))
    return [as_seen(pipe, picture, asked.pixels) for picture in opened]
