"""The options of tasks that draw: names that diffusers has too, seeds, outputs, negative prompts, what is refused."""

from __future__ import annotations

import inspect
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
    assert bits(pipe.generate("a", steps=2)) == bits(pipe(["a"], steps=2))
    assert pipe.generate([]) == []


def test_seeds(pipe: ShowoPipeline) -> None:
    counted = bits(pipe.generate(["a"] * 3, steps=2, seed=5, batch=2))
    assert len(set(counted)) == 3
    assert bits(pipe.generate(["a"] * 3, steps=2, seed=[7, 5, 6], batch=2)) == [counted[2], *counted[:2]]
    generator = torch.Generator().manual_seed(3)
    first, second = (bits(pipe.generate(["a"] * 3, steps=2, generator=generator, batch=2)) for _ in range(2))
    assert len({*first, *second}) == 6
    assert bits(pipe.generate(["a"] * 3, steps=2, generator=torch.Generator().manual_seed(3))) == first


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


def test_a_bar_only_where_it_is_wanted(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
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
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_refused_before_any_work(
    pipe: ShowoPipeline, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Showo, "forward", None)
    with pytest.raises(UserError, match=message):
        pipe.generate("a", **options)


def test_an_unknown_name_is_refused(pipe: ShowoPipeline) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        pipe.generate("a", stepz=3)  # type: ignore[call-arg]


def test_every_option_is_resolved() -> None:
    others = {"height", "width", "num_inference_steps", "guidance_scale", "callback_on_step_end"}
    assert set(Options.__annotations__) - others == set(inspect.signature(Asked).parameters)
