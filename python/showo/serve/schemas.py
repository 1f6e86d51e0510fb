"""What clients may ask for: OpenAI's fields, and those that this model has beyond them.

Fields of OpenAI that cannot be had here are refused unless they have the value that asks for nothing. Fields that say
who asks, or how the answer is stored, change nothing in an answer and are let pass. Others are unknown, and refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from showo.engine.options import Options

_PASSED = (
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
Nothing = Annotated[float | None, Field(ge=0, le=0)]  # a number that may be given if it is 0
Item = TypeVar("Item")
# Looked at up to the first item that is wrong: a body may hold millions of them.
Several = Annotated[list[Item], Field(fail_fast=True)]
Direction = Literal["left", "right", "up", "down"]
MAX_DIRECTIONS = 64
Seed = Annotated[int | None, Field(ge=-(2**63), lt=2**63 - 10**6)]  # several pictures count up from it


class Asked(BaseModel):
    """Numbers are numbers and not texts, but in forms, which have nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool | None = None
    seed: Seed = None
    top_k: int | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _pass(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if name not in _PASSED}
        return data


class WeightedText(BaseModel):
    """A text that is composed with a picture's prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    weight: float = Field(allow_inf_nan=False)


class AskedPictures(Asked):
    """Pictures of a prompt, `POST /v1/images/generations`.

    Beyond OpenAI: seed (of the first picture; the others count up), steps, guidance, top_k, schedule, temperature,
    sampler, guidance_schedule, negative_prompt, also, as in `showo.engine.options.Options`.
    """

    prompt: str
    n: int | None = Field(None, ge=1)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    partial_images: int | None = Field(None, ge=0, le=3)
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None

    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    schedule: str | None = None
    sampler: str | None = None
    guidance_schedule: str | None = None
    negative_prompt: str | None = None
    also: Several[WeightedText] | None = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        return parse_size(self.size)

    def options(self, seed: int) -> Options:
        """Of one picture."""
        names = ("steps", "guidance", "temperature", "top_k", "schedule", "sampler", "guidance_schedule")
        given: dict[str, Any] = {name: getattr(self, name) for name in (*names, "negative_prompt")}
        options = {name: value for name, value in given.items() if value is not None}
        if self.also is not None:
            options["also"] = [(other.text, other.weight) for other in self.also]
        return Options(**options, size=self.pixels, seed=seed)  # type: ignore[typeddict-item]

    @model_validator(mode="after")
    def _check(self) -> AskedPictures:
        parse_size(self.size)
        if self.response_format == "url":
            raise ValueError("response_format: pictures are kept nowhere, so there are no URLs; ask for b64_json")
        if self.stream and (self.n or 1) > 1:
            raise ValueError("n: pictures are streamed one at a time; ask for 1, or without stream")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: needs stream")
        if self.output_compression is not None and self.output_format not in ("jpeg", "webp"):
            raise ValueError("output_compression: needs the output_format jpeg or webp")
        return self


class AskedEdits(AskedPictures):
    """Pictures redrawn where a mask is transparent, or drawn on beyond their edges, `POST /v1/images/edits`.

    Beyond OpenAI, besides what pictures have: blend, as in `showo.engine.tasks.inpaint`; extend, the directions in
    which a picture is drawn on, extend_by, codes of each band, and extend_prompts, one for each direction in the place
    of the prompt, as in `showo.engine.tasks.extend`.
    """

    input_fidelity: Literal["low"] | None = None
    blend: int | None = Field(None, ge=0, le=4096)
    extend: Annotated[list[Direction], Field(min_length=1, max_length=MAX_DIRECTIONS, fail_fast=True)] | None = None
    extend_by: int | None = Field(None, ge=1)
    extend_prompts: Annotated[list[str], Field(max_length=MAX_DIRECTIONS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_extend(self) -> AskedEdits:
        for name in ("extend_by", "extend_prompts"):
            if getattr(self, name) is not None and self.extend is None:
                raise ValueError(f"{name}: needs extend, the directions in which the picture is drawn on")
        return self


class AskedVariations(AskedPictures):
    """Pictures like a given one, or between two, `POST /v1/images/variations`.

    Beyond OpenAI: what pictures have, the prompt too, which may be left out; share, as in `showo.engine.tasks.vary`.
    """

    prompt: str = ""
    share: float = Field(0.5, gt=0, le=1)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class PictureUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class PicturePart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["image_url"]
    image_url: PictureUrl


Part = Annotated[TextPart | PicturePart, Field(discriminator="type")]


class Message(BaseModel):
    """A turn. Only what clients send back of an answer is taken beside its role and content, if it is empty."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user", "assistant"]
    content: str | Several[Part]
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any] | None, Field(max_length=0)] = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any] | None, Field(max_length=0)] = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class AskedChat(Asked):
    """A talk about pictures, `POST /v1/chat/completions`.

    Beyond OpenAI: top_k, and size, (as "64x64") to which pictures are cropped and resized.
    """

    messages: Several[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=1)
    stream_options: StreamOptions | None = None
    size: str | None = None

    frequency_penalty: Nothing = None
    presence_penalty: Nothing = None
    logprobs: Literal[False] | None = None
    stop: Annotated[list[str] | None, Field(max_length=0)] = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    response_format: TextFormat | None = None
    modalities: Several[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        return parse_size(self.size)

    @model_validator(mode="after")
    def _check(self) -> AskedChat:
        parse_size(self.size)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: the same as max_completion_tokens, which is given too")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream")
        return self


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) of "64x32"; None, the training size, of "auto". ValueError for other texts."""
    if size is None or size == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
    if match is None:
        raise ValueError(f"size: expected auto or WIDTHxHEIGHT in pixels, such as 64x64, got {size[:40]!r}")
    return int(match[1]), int(match[2])
