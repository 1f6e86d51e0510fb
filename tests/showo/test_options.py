"""The options of tasks that draw: names that diffusers has too, seeds, outputs, negative prompts, what is refused."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from showo.engine.generate import GenerationStep, generate_codes
from showo.engine.options import Asked, Options
from showo.engine.pipeline import ShowoPipeline
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> ShowoPipeline:
    return ShowoPipeline.from_pretrained(checkpoint)


def bits(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_names_of_diffusers_mean_ours(pipe: ShowoPipeline) -> None:
    ours = pipe.generate(["a", "a", "b", "b"], size=(24, 16), steps=3, guidance=2.5, seed=7)
    theirs = pipe(
        ["a", "b"], width=24, height=16, num_inference_steps=3, guidance_scale=3.5, num_images_per_prompt=2, seed=7
    )
    assert bits(ours) == bits(theirs)
    assert ours[0].size == (24, 16)
    assert bits(pipe.generate("a", steps=2)) == bits(pipe(prompt=["a"], steps=2))
    assert pipe.generate([]) == []


def test_seeds(pipe: ShowoPipeline) -> None:
    counted = bits(pipe.generate(["a"] * 3, steps=2, seed=5, batch=2))
    assert len(set(counted)) == 3
    assert bits(pipe.generate(["a"] * 3, steps=2, seed=[7, 5, 6], batch=2)) == [counted[2], *counted[:2]]
    generator = torch.Generator().manual_seed(3)
    first, second = (bits(pipe.generate(["a"] * 3, steps=2, generator=generator, batch=2)) for _ in range(2))
    assert len({*first, *second}) == 6
    assert bits(pipe.generate(["a"] * 3, steps=2, generator=torch.Generator().manual_seed(3))) == first
    own = [torch.Generator().manual_seed(3) for _ in range(3)]  # one for each picture, alike
    assert len(set(bits(pipe.generate(["a"] * 3, steps=2, generator=own)))) == 1
    for seeds in (np.array([7, 5, 6]), torch.tensor([7, 5, 6])):
        assert bits(pipe.generate(["a"] * 3, steps=2, seed=seeds)) == [counted[2], *counted[:2]]  # type: ignore[arg-type]


def test_outputs(pipe: ShowoPipeline) -> None:
    pictures = pipe.generate(["a"] * 3, steps=2, batch=2)
    pt, array, codes = (
        pipe.generate(["a"] * 3, steps=2, batch=2, output_type=output_type) for output_type in ("pt", "np", "codes")
    )
    expected = np.stack([np.asarray(picture) for picture in pictures])
    assert (array * 255).round().astype(np.uint8).tolist() == expected.tolist()
    assert torch.equal(pt, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert codes.shape == (3, 4, 4)
    decoded = [pipe.decode(codes[part].flatten(1), (4, 4)) for part in (slice(0, 2), slice(2, 3))]
    assert bits([*decoded[0], *decoded[1]]) == bits(pictures)


def test_callbacks(pipe: ShowoPipeline) -> None:
    ours: list[tuple[int, GenerationStep]] = []
    theirs: list[tuple[object, int, int, dict[str, Any]]] = []
    pipe.generate(["a", "b"], steps=3, batch=1, callback=lambda *seen: ours.append(seen))
    pipe.generate(["a", "b"], steps=3, batch=1, callback_on_step_end=lambda *seen: theirs.append(seen))
    assert [first for first, _ in ours] == [0, 0, 0, 1, 1, 1]
    assert [seen[:3] for seen in theirs] == [(pipe, step, 2 - step) for step in (0, 1, 2)] * 2
    for (_, step), (*_, seen) in zip(ours, theirs, strict=True):
        assert torch.equal(seen["codes"], step.codes)
        assert torch.equal(seen["masked"], step.masked)


@pytest.mark.parametrize("official", [False, True])
def test_a_negative_prompt_is_the_other_half(model: Showo, prompting: Prompting, official: bool) -> None:
    texts, negatives = [[1, 2], [3]], [[5], [6, 7]]
    options: dict[str, Any] = {"steps": 4, "guidance": 3.0, "official": official}
    drawn = generate_codes(model, prompting, texts, negatives=negatives, **options)
    plain = generate_codes(model, prompting, texts, **options)
    assert torch.equal(generate_codes(model, prompting, texts, negatives=[[], []], **options), plain)
    assert not torch.equal(drawn, plain)
    # With the text itself there, both halves agree: all guidance cancels out.
    same = generate_codes(model, prompting, texts, negatives=texts, **options)
    assert torch.equal(same, generate_codes(model, prompting, texts, **{**options, "guidance": 0.0}))


def test_negative_prompts_of_a_pipeline(pipe: ShowoPipeline) -> None:
    one = bits(pipe.generate(["a", "b"], steps=2, negative_prompt="c", batch=1))
    assert one == bits(pipe.generate(["a", "b"], steps=2, negative_prompt=["c", "c"]))
    other = bits(pipe.generate(["a", "b"], steps=2, negative_prompt=["c", "d"], batch=1))
    assert other[0] == one[0]
    assert other[1] != one[1]


def test_composed_prompts_of_a_pipeline(pipe: ShowoPipeline) -> None:
    """Of a call as of the function, whatever the batch; of one list for all pictures as of one for each."""
    options: dict[str, Any] = {"steps": 3, "seed": 4, "guidance": 1.0, "output_type": "codes"}
    also = [[("c", 2.0), ("d e", -1.5)], [], [("f", 0.5)]]
    drawn = pipe.generate(["a", "b", "a"], also=also, batch=2, **options)
    ids = pipe.text_ids(["a", "b", "a", "c", "d e", "f"])
    others = [[(ids[3], 2.0), (ids[4], -1.5)], [], [(ids[5], 0.5)]]
    codes = generate_codes(pipe.model, pipe.prompting, ids[:3], also=others, steps=3, seed=4, guidance=1.0)
    assert torch.equal(drawn.flatten(1), codes)
    plain = pipe.generate(["a", "b", "a"], **options)
    assert [torch.equal(found, other) for found, other in zip(drawn, plain, strict=True)] == [False, True, False]
    one = pipe.generate(["a", "b"], also=also[0], **options)
    assert torch.equal(one, pipe.generate(["a", "b"], also=[also[0]] * 2, **options))
    assert torch.equal(one[0], drawn[0])
    assert torch.equal(pipe.generate(["a", "b", "a"], also=[], **options), plain)
    options |= {"guidance": 0.0, "also": [("c", 9.0)]}
    assert not torch.equal(pipe.generate("a", **options), pipe.generate("a", negative_prompt="g", **options))


def test_composed_prompts_of_every_task(pipe: ShowoPipeline) -> None:
    picture = Image.new("RGB", (16, 16), "teal")

    def drawn(**options: Any) -> list[torch.Tensor]:
        options |= {"steps": 3, "output_type": "codes", "progress": False}
        return [
            pipe.generate("a", earlier=[[("b", picture)]], **options),
            pipe.inpaint(picture, "a", (0, 0, 16, 16), **options),
            pipe.vary(picture, "a", share=0.9, **options),
            pipe.extend(picture, "a", ["right", "up"], **options),
            pipe.interleave([["a", "b"]], **options)[0][1],
        ]

    plain = drawn()
    for alone, same, composed in zip(plain, drawn(also=[("c", 0.0)]), drawn(also=[("c", 9.0)]), strict=True):
        assert torch.equal(alone, same)
        assert not torch.equal(alone, composed)


def test_a_bar_only_where_it_is_wanted(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.generate("a", steps=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pipe.generate("a", steps=2)
    assert "drawing" in capsys.readouterr().err
    pipe.generate("a", steps=2, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2, "num_inference_steps": 2}, "num_inference_steps: the same as steps, which is given too"),
        ({"guidance": 2.0, "guidance_scale": 3.0}, "guidance_scale: the same as guidance, which is given too"),
        ({"size": (16, 16), "height": 16, "width": 16}, "height and width: the same as size, which is given too"),
        ({"height": 16}, "height and width belong together, got 16 and None"),
        ({"height": 16, "width": 18}, "size 18x16: both sides must be positive multiples of 4"),
        ({"height": 4096, "width": 4096}, "a picture of 1048576 codes needs 1048599 positions; this model has 128"),
        ({"guidance_scale": 0.5}, r"guidance_scale must be 1 or more \(1 is no guidance\), got 0.5"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"output_type": "jpg"}, "output_type must be one of pil, pt, np, codes, got 'jpg'"),
        ({"seed": 1, "generator": torch.Generator()}, "give a seed or a generator, not both"),
        ({"seed": [1, 2]}, "seed must be one number or 1, got 2"),
        ({"negative_prompt": ["c", "d"]}, "negative_prompt must be one text or 1, got 2"),
        ({"negative_prompt": "c", "guidance": 0.0}, "negative_prompt: guidance 0 draws without it"),
        ({"also": [[("c", 1.0)], []]}, "also: 2 lists of further prompts for 1 pictures"),
        ({"also": [("c", 1.0)] * 8}, "also: a picture has 9 prompts, at most 8 can be composed"),
        ({"also": [("c", float("nan"))]}, "also: a weight must be a number from -1e30 to 1e30, got nan"),
        ({"sampler": "gibbs"}, "sampler must be confidence"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1 and at most 1000, got 0"),
        ({"steps": 10**9}, "steps must be at least 1 and at most 1000, got 1000000000"),
        ({"generator": [torch.Generator()] * 2}, "generator: 2 generators for 1 pictures"),
    ],
)
def test_refused_before_any_work(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Showo, "forward", None)
    with pytest.raises(UserError, match=message):
        pipe.generate("a", **options)


def test_an_unknown_name_is_refused(pipe: ShowoPipeline) -> None:
    with pytest.raises(TypeError, match="there is no option 'stepz'; did you mean 'steps'"):
        pipe.generate("a", stepz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"size": "64x64"}, r"\(width, height\) in whole pixels"),
        ({"size": (64.0, 64.0)}, r"\(width, height\) in whole pixels"),
        ({"height": "16", "width": 16}, "a whole number"),
        ({"steps": 2.0}, "a whole number"),
        ({"steps": True}, "a whole number"),
        ({"guidance": "1"}, "a number"),
        ({"temperature": None}, "a number"),
        ({"top_k": 1.5}, "a whole number"),
        ({"seed": None}, "a whole number, or one for each picture"),
        ({"seed": [1.5]}, "a whole number, or one for each picture"),
        ({"generator": 3}, "a torch.Generator, or one for each picture"),
        ({"batch": "x"}, "a whole number"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(pipe: ShowoPipeline, option: dict[str, Any], kind: str) -> None:
    name, value = next(iter(option.items()))
    with pytest.raises(TypeError, match=f"{name} must be {kind}, got {re.escape(repr(value))}"):
        pipe.generate("a", **option)


def test_every_option_is_resolved() -> None:
    others = {"height", "width", "num_inference_steps", "guidance_scale", "callback_on_step_end"}
    assert set(Options.__annotations__) - others == set(inspect.signature(Asked).parameters)


@pytest.mark.parametrize("also", ["c", ["c"], [("c", "1")], [("c", 1.0, 2)], [("c", 1.0), []], [[("c",)]]])
def test_further_prompts_of_another_type(pipe: ShowoPipeline, also: Any) -> None:
    with pytest.raises(TypeError, match=r'also must be \[\("a text", 0.5\), ...\], or one such list for each picture'):
        pipe.generate("a", also=also)
