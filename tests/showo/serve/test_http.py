"""The server through OpenAI's own client: what it answers is what the pipeline gives."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image, ImageChops

from showo.engine.batching import Answer, AnswerDone
from tests.showo.serve.conftest import NAME, Running

SEED = random.SystemRandom().randrange(2**31)
print(f"seed {SEED}")
OPTIONS: dict[str, Any] = {"steps": 3, "guidance": 1.5, "seed": SEED}


def noise(seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    bands = len(mode)
    return Image.frombytes(mode, size, random.Random(seed).randbytes(size[0] * size[1] * bands))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def picture_of(text: str | None) -> Image.Image:
    assert text is not None
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    picture.load()
    return picture


def differ(drawn: str | None, expected: Image.Image) -> int:
    """By how many levels of 255 a picture in base64 differs from another, at most.

    By 1 where a value lies at the border of two: convolutions of other batches may round otherwise. Another code would
    be seen at once.
    """
    shown = picture_of(drawn)
    assert shown.size == expected.size
    return max(high for _, high in ImageChops.difference(shown, expected).getextrema())


def about(question: str | None, *pictures: Image.Image) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    if question is not None:
        parts.append({"type": "text", "text": question})
    return {"role": "user", "content": parts}


def test_generations(served: Running) -> None:
    answer = served.openai().images.generate(model=NAME, prompt="a b", n=3, size="16x32", extra_body=OPTIONS)
    expected = served.pipe.generate("a b", num_images_per_prompt=3, size=(16, 32), **OPTIONS)
    for data, picture in zip(answer.data or [], expected, strict=True):
        assert differ(data.b64_json, picture) <= 1, f"seed {SEED}"
    assert [data.seed for data in answer.data or []] == [SEED, SEED + 1, SEED + 2]  # type: ignore[attr-defined]
    assert answer.size == "16x32"
    assert answer.output_format == "png"
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 96, 99)


def test_a_seed_of_its_own(served: Running) -> None:
    client = served.openai()
    first, second = (client.images.generate(prompt="a", extra_body={"steps": 2}).data or [] for _ in range(2))
    assert first[0].b64_json != second[0].b64_json
    again = client.images.generate(prompt="a", extra_body={"steps": 2, "seed": first[0].seed})  # type: ignore[attr-defined]
    assert (again.data or [])[0].b64_json == first[0].b64_json


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(served: Running, kind: Any) -> None:
    sizes = []
    for quality in (95, 10):
        answer = served.openai().images.generate(
            prompt="a", output_format=kind, output_compression=quality, extra_body=OPTIONS
        )
        text = (answer.data or [])[0].b64_json
        assert picture_of(text).format == kind.upper()
        sizes.append(len(text or ""))
    assert sizes[0] > sizes[1]


def test_streamed_generation(served: Running) -> None:
    stream = served.openai().images.generate(prompt="a b", stream=True, partial_images=2, extra_body=OPTIONS)
    *partial, last = stream
    assert last.type == "image_generation.completed"
    (expected,) = served.pipe.generate("a b", **OPTIONS)
    assert differ(last.b64_json, expected) <= 1, f"seed {SEED}"
    assert last.usage.output_tokens == 16
    assert len(partial) <= 2  # a reader that is slower than the steps misses some
    for number, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        assert picture_of(event.b64_json).size == (16, 16)


@pytest.mark.parametrize("separate", [True, False])
def test_edits(served: Running, separate: bool) -> None:
    picture, alpha = noise(SEED), Image.new("L", (16, 16), 255)
    alpha.paste(0, (0, 0, 8, 5))
    clear = picture.copy()
    clear.putalpha(alpha)
    files: dict[str, Any] = {"image": png(picture), "mask": png(clear)} if separate else {"image": png(clear)}
    answer = served.openai().images.edit(prompt="b", n=2, extra_body={**OPTIONS, "blend": 1}, **files)
    shown = picture if separate else Image.open(io.BytesIO(png(clear)))
    options = {**OPTIONS, "num_images_per_prompt": 2}
    expected = served.pipe.inpaint(shown, "b", (0, 0, 8, 5), blend=1, **options)
    for data, drawn in zip(answer.data or [], expected, strict=True):
        assert differ(data.b64_json, drawn) <= 1, f"seed {SEED}"


ALSO: list[dict[str, Any]] = [{"text": "c", "weight": 0.8}, {"text": "a", "weight": -0.5}]
TOLD = [(each["text"], each["weight"]) for each in ALSO]


def test_composed_prompts(served: Running) -> None:
    answer = served.openai().images.generate(prompt="b", extra_body={**OPTIONS, "also": ALSO})
    (drawn,) = answer.data or []
    assert differ(drawn.b64_json, served.pipe.generate("b", also=TOLD, **OPTIONS)[0]) <= 1, f"seed {SEED}"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.text_tokens == 3
    picture = noise(SEED, mode="RGBA")
    picture.putalpha(0)
    expected = served.pipe.inpaint(picture, "b", (0, 0, 16, 16), also=TOLD, **OPTIONS)[0]
    for also in (ALSO, json.dumps(ALSO)):  # as the client writes lists in forms, and as others may
        answer = served.openai().images.edit(image=png(picture), prompt="b", extra_body={**OPTIONS, "also": also})
        (drawn,) = answer.data or []
        assert differ(drawn.b64_json, expected) <= 1, f"seed {SEED}"


@pytest.mark.parametrize("prompts", [None, ["c", "a b"]])
def test_extended_pictures(served: Running, prompts: list[str] | None) -> None:
    picture = noise(SEED, (20, 16))
    more = {"extend": ["left", "up"], "extend_by": 3, "blend": 2, "also": ALSO}
    if prompts is not None:
        more["extend_prompts"] = prompts
    answer = served.openai().images.edit(
        image=png(picture),
        prompt="b",
        size="20x16",
        n=2,
        extra_body={**OPTIONS, **more},  # type: ignore[call-overload]
    )
    assert answer.size == "32x28"
    assert answer.usage.output_tokens == 2 * 8 * 7
    for number, data in enumerate(answer.data):
        options = {**OPTIONS, "seed": SEED + number, "size": (20, 16), "also": TOLD}
        expected = served.pipe.extend(picture, prompts or "b", ["left", "up"], by=3, blend=2, **options)
        assert differ(data.b64_json, expected[0]) <= 1, f"seed {SEED}"


def test_streamed_extension(served: Running) -> None:
    """One direction needs no list; what is shown on the way is the window that is drawn."""
    files = {"image": png(noise(SEED))}
    fields = {"prompt": "b", "extend": "right", "stream": "true", "partial_images": "1", "steps": "4", "seed": "1"}
    with served.http() as http:
        events = http.post("/v1/images/edits", data=fields, files=files).text
    told = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    *partial, last = told
    assert [(each["type"], each["size"]) for each in partial] in ([], [("image_edit.partial_image", "16x16")])
    assert last["type"] == "image_edit.completed"
    assert last["size"] == "24x16"
    assert differ(last["b64_json"], served.pipe.extend(noise(SEED), "b", "right", steps=4, seed=1)[0]) <= 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI itself answers no such request any more
def test_variations(served: Running) -> None:
    picture, other = noise(SEED, (30, 20)), noise(SEED + 1)
    client = served.openai()
    answer = client.images.create_variation(image=png(picture), n=2, response_format="b64_json", extra_body=OPTIONS)
    expected = served.pipe.vary(picture, "", num_images_per_prompt=2, **OPTIONS)
    for data, drawn in zip(answer.data or [], expected, strict=True):
        assert differ(data.b64_json, drawn) <= 1, f"seed {SEED}"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == 16
    answer = client.post(  # the client's own method has no second picture
        "/images/variations",
        cast_to=ImagesResponse,
        body={**OPTIONS, "prompt": "b", "share": 0.3, "also": ALSO},
        files=[("image", png(picture)), ("other", png(other))],
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    (drawn,) = served.pipe.vary(picture, "b", other=other, share=0.3, also=TOLD, **OPTIONS)
    assert differ((answer.data or [])[0].b64_json, drawn) <= 1, f"seed {SEED}"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == 32


def test_streamed_edit(served: Running) -> None:
    picture = noise(SEED, mode="RGBA")
    *_, last = served.openai().images.edit(image=[png(picture)], prompt="b", stream=True, extra_body=OPTIONS)
    assert last.type == "image_edit.completed"
    assert picture_of(last.b64_json).size == (16, 16)


@pytest.mark.parametrize("question", ["a b", None])
def test_chat(served: Running, question: str | None) -> None:
    picture = noise(SEED, (20, 30))
    answer = served.openai().chat.completions.create(model=NAME, messages=[about(question, picture)], max_tokens=5)  # type: ignore[list-item]
    (expected,) = served.pipe.describe([picture], question, max_new_tokens=5)
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5
    assert answer.choices[0].finish_reason == ("length" if answer.usage.completion_tokens == 5 else "stop")


def test_streamed_chat_of_several_turns(served: Running) -> None:
    """The talk goes on from the texts that the client sends: random bytes of a random model are not always UTF-8."""
    pictures = [noise(SEED), noise(SEED + 1)]
    messages: list[Any] = []
    turns: list[tuple[str, str]] = []
    for question in ("a", "b c"):
        messages.append({"role": "user", "content": question} if turns else about(question, *pictures))
        options = {"stream": True, "max_completion_tokens": 4, "stream_options": {"include_usage": True}}
        stream = served.openai().chat.completions.create(model=NAME, messages=messages, **options)
        chunks = list(stream)
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        expected = served.engine.submit(Answer(pictures, question, turns, max_new_tokens=4)).result()
        assert isinstance(expected, AnswerDone)
        assert answer == expected.text, f"seed {SEED}"
        assert chunks[-1].usage.completion_tokens == expected.tokens
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] in ("stop", "length")
        messages.append({"role": "assistant", "content": answer})
        turns.append((question, answer))


def test_models_and_health(served: Running) -> None:
    client = served.openai()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with served.http(key=None) as http:
        assert http.get("/health").json() == {"status": "ok", "model": NAME, "waiting": 0, "running": 0}
        assert http.get("/v1/models").status_code == 401


def test_errors_of_the_client(served: Running) -> None:
    client = served.openai()
    with pytest.raises(openai.AuthenticationError, match="key"):
        served.openai(api_key="another").models.list()
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.images.generate(model="gpt-5", prompt="a")
    with pytest.raises(openai.BadRequestError, match="steps must be at least 1 and at most 1000") as error:
        client.images.generate(prompt="a", extra_body={"steps": 10_000})
    assert error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="b64_json") as error:
        client.images.generate(prompt="a", response_format="url")
    assert error.value.param == "response_format"
