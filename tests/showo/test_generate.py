"""Generation: the cached path against the padded official one, independence of neighbours, canvases, errors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from showo.engine.generate import Earlier, GenerationStep, generate_codes
from showo.engine.pipeline import ShowoPipeline, Story
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext.testing import CountOperators

TEXTS = [[1, 2, 3], [], [5] * 20, [7]]


def noise(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    low, high = 1e-6, 1 - 1e-6
    sample = torch.rand(len(TEXTS), 16, 64, generator=generator) * (high - low) + low
    remask = torch.rand(len(TEXTS), 16, generator=generator) * (high - low) + low
    return sample, remask


@pytest.mark.parametrize("guidance", [0.0, 1.75])
@pytest.mark.parametrize("options", [{}, {"schedule": "pow2", "temperature": 3.0, "sampler": "linear-temperature"}])
def test_cached_equals_official(
    model: Showo, prompting: Prompting, guidance: float, options: dict[str, object]
) -> None:
    for source in ({"noise": noise}, {"seed": 7}):
        steps: list[GenerationStep] = []
        fast = generate_codes(
            model, prompting, TEXTS, steps=6, guidance=guidance, callback=steps.append, **source, **options
        )  # type: ignore[arg-type]
        slow = generate_codes(model, prompting, TEXTS, steps=6, guidance=guidance, official=True, **source, **options)  # type: ignore[arg-type]
        assert torch.equal(fast, slow)
        assert fast.shape == (4, 16)
        assert int(fast.min()) >= 0
        assert int(fast.max()) < 64
        assert [step.step for step in steps] == list(range(6))
        assert torch.equal(steps[-1].codes, fast)
        counts = [step.masked.sum(1).tolist() for step in steps]
        assert all(len(set(row)) == 1 for row in counts)
        assert all(a[0] > b[0] for a, b in pairwise(counts)) or counts[-1][0] == 1


def test_the_reference_loop(model: Showo, prompting: Prompting) -> None:
    """One prompt, no guidance: the loop of the paper written out with full logits and explicit noise."""
    vocab = model.config.vocabulary
    text = prompting.t2i([[1, 2, 3]], torch.full((1, 16), vocab.mask_id))
    ids, steps, temperature = text.input_ids.clone(), 5, 1.5
    for step in range(steps):
        with torch.no_grad():
            logits = model(ids, mask=text.mask)[:, -17:-1, vocab.image_offset : -1]
        u, v = (part[:1] for part in noise(step))
        chosen = (logits.log_softmax(-1) - (-u.log()).log()).argmax(-1)
        current = ids[:, -17:-1]
        unknown = current == vocab.mask_id
        chosen = torch.where(unknown, chosen, current - vocab.image_offset)
        probs = logits.softmax(-1).gather(-1, chosen[..., None])[..., 0]
        ratio = (step + 1) / steps
        length = max(1, min(int(unknown.sum()) - 1, int(16 * torch.cos(torch.tensor(ratio * torch.pi / 2)))))
        temperature *= 1 - ratio
        confidence = probs.log() - temperature * (-v.log()).log()
        confidence = confidence.masked_fill(~unknown, torch.inf)
        again = confidence < confidence.sort(-1).values[:, length]
        ids[:, -17:-1] = torch.where(again, vocab.mask_id, chosen + vocab.image_offset)
    got = generate_codes(
        model,
        prompting,
        [[1, 2, 3]],
        steps=steps,
        guidance=0,
        temperature=1.5,
        noise=lambda step: tuple(part[:1] for part in noise(step)),  # type: ignore[arg-type,return-value]
    )
    assert torch.equal(got, chosen)


@pytest.mark.parametrize(("device", "official"), [("cpu", False), ("cpu", True), ("emulated", False)])
def test_masks_are_planned_once_however_many_steps(
    model: Showo, prompting: Prompting, device: str, official: bool, request: pytest.FixtureRequest
) -> None:
    """One plan for all layers of all steps, one for the last layer's rows; two for the cached prefix."""
    if device == "emulated":
        request.getfixturevalue("emulated")
    for steps in (1, 2):
        with CountOperators() as counter:
            generate_codes(model, prompting, [[1, 2]], steps=steps, guidance=0, grid=(5, 5), official=official)
        layers = model.config.num_layers * (steps if official else steps + 1)
        assert counter.calls["omni_attention_forward"] == layers
        # The prefix has few rows: a table on the CPU, none for the CUDA decode kernels.
        plans = 1 if official else 2 if device == "emulated" else 4
        assert counter.calls["omni_block_table"] == plans


def story(model: Showo, images: list[int]) -> Earlier:
    """Rows with so many pictures before the wanted one, each after a text of its own length."""
    vocab, generator = model.config.vocabulary, torch.Generator().manual_seed(3)
    codes = [torch.randint(vocab.image_offset, vocab.mask_id, (count, 16), generator=generator) for count in images]
    return Earlier([[[b + 1, *[m] * m] for m in range(count)] for b, count in enumerate(images)], codes)


@pytest.mark.parametrize("guidance", [0.0, 1.75])
def test_pictures_that_continue_a_row(model: Showo, prompting: Prompting, guidance: float) -> None:
    """One, two and no pictures before: cached as official, neighbours play no part, what came before does."""
    model.config = replace(model.config, max_positions=69)
    texts, images = [[1, 2], [], [7]], [1, 2, 0]
    earlier = story(model, images)
    options: dict[str, Any] = {"steps": 5, "guidance": guidance}
    fast = generate_codes(model, prompting, texts, earlier=earlier, seed=4, **options)
    slow = generate_codes(model, prompting, texts, earlier=earlier, seed=4, official=True, **options)
    assert torch.equal(fast, slow)
    for b in range(2):
        alone = Earlier(earlier.texts[b : b + 1], earlier.image_ids[b : b + 1])
        assert torch.equal(
            generate_codes(model, prompting, texts[b : b + 1], earlier=alone, seed=4 + b, **options)[0], fast[b]
        )
        other = Earlier(alone.texts, [alone.image_ids[0].flip(1)])
        assert not torch.equal(
            generate_codes(model, prompting, texts[b : b + 1], earlier=other, seed=4 + b, **options)[0], fast[b]
        )
    plain = generate_codes(model, prompting, texts[2:], seed=6, **options)
    assert torch.equal(plain[0], fast[2])
    # Guidance contrasts with the row whose last text is empty; the second row's is.
    unguided = generate_codes(model, prompting, texts, earlier=earlier, seed=4, steps=5, guidance=0)
    assert torch.equal(unguided[1], fast[1])


def test_rows_that_the_model_has_no_positions_for(model: Showo) -> None:
    prompting = Prompting.for_model(model.config, eot=39)
    with pytest.raises(UserError, match="row 0 takes 73 positions; the model has 64"):
        generate_codes(model, prompting, [[1] * 4], earlier=story(model, [2]), steps=2)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_picture_does_not_depend_on_its_neighbours(model: Showo, prompting: Prompting, guidance: float) -> None:
    together = generate_codes(model, prompting, TEXTS, steps=5, guidance=guidance, seed=11)
    for i, text in enumerate(TEXTS):
        alone = generate_codes(model, prompting, [text], steps=5, guidance=guidance, seed=11 + i)
        assert torch.equal(alone[0], together[i])
    listed = generate_codes(model, prompting, TEXTS[::-1], steps=5, guidance=guidance, seed=[14, 13, 12, 11])
    assert torch.equal(listed, together.flip(0))
    assert not torch.equal(generate_codes(model, prompting, TEXTS, steps=5, guidance=guidance, seed=12), together)


def test_known_codes_stay(model: Showo, prompting: Prompting) -> None:
    vocab = model.config.vocabulary
    canvas = torch.randint(vocab.image_offset, vocab.mask_id, (3, 16))
    before = canvas.clone()
    canvas[0, ::2] = vocab.mask_id
    canvas[1, 3] = vocab.mask_id
    given = canvas.clone()
    for official in (False, True):
        out = generate_codes(model, prompting, [[1], [2], [3]], canvas=canvas, steps=4, official=official)
        known = given != vocab.mask_id
        assert torch.equal(out[known], (given - vocab.image_offset)[known])
        assert torch.equal(out[2], before[2] - vocab.image_offset)
        assert torch.equal(canvas, given)  # the caller's tensor is left alone


def test_other_grids(model: Showo, prompting: Prompting) -> None:
    assert generate_codes(model, prompting, [[1]], grid=(5, 7), steps=3).shape == (1, 35)
    assert generate_codes(model, prompting, [], steps=3).shape == (0, 16)
    assert generate_codes(model, prompting, [[1]], steps=40).shape == (1, 16)  # more steps than places


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": -1.0}, "guidance must be 0 or more"),
        ({"guidance": float("nan")}, "guidance must be 0 or more"),
        ({"temperature": -0.5}, "temperature must be 0 or more"),
        ({"schedule": "none"}, "schedule must be"),
        ({"grid": (9, 9)}, "needs 92 positions; this model has 64"),
        ({"grid": (0, 4)}, "grid must be at least 1x1"),
        ({"seed": [1, 2]}, "seed must be one number or 1"),
        ({"canvas": torch.zeros(1, 16, dtype=torch.int64)}, "canvas must hold ids"),
        ({"canvas": torch.full((2, 16), 50)}, r"canvas must be \[1, 16\]"),
    ],
)
def test_bad_options(model: Showo, prompting: Prompting, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_codes(model, prompting, [[1]], **options)  # type: ignore[arg-type]


def test_a_pipeline_continues_stories(checkpoint: Path) -> None:
    pipe = ShowoPipeline.from_pretrained(checkpoint)
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    stories: list[Story] = [[("a", red)], [], [("b", blue), ("a", red)]]
    options: dict[str, Any] = {"steps": 3, "seed": 5}
    codes = generate_codes(
        pipe.model,
        pipe.prompting,
        pipe.text_ids(["c", "d", "e"]),
        earlier=Earlier(
            [pipe.text_ids(texts) for texts in (["a"], [], ["b", "a"])], _encoded(pipe, [[red], [], [blue, red]])
        ),
        **options,
    )
    drawn = pipe.decode(codes, (4, 4))
    assert pipe.generate(["c", "d", "e"], earlier=stories, batch=2, **options) == drawn
    assert pipe.generate(["c"], earlier=[[]], **options) == pipe.generate(["c"], **options)
    with pytest.raises(UserError, match="1 rows of earlier pictures for 2 prompts"):
        pipe.generate(["c", "d"], earlier=[[]])


def _encoded(pipe: ShowoPipeline, rows: list[list[Image.Image]]) -> list[Tensor]:
    return [pipe.encode(row, (4, 4)) if row else torch.empty(0, 16, dtype=torch.int64) for row in rows]


def test_the_most_probable_codes_alone(model: Showo, prompting: Prompting) -> None:
    """top_k of 1 leaves no choice: every seed gives the picture of the most probable codes."""
    pictures = [generate_codes(model, prompting, TEXTS, steps=1, top_k=1, seed=seed) for seed in (1, 2)]
    assert torch.equal(*pictures)
    free = [generate_codes(model, prompting, TEXTS, steps=1, seed=seed) for seed in (1, 2)]
    assert not torch.equal(*free)
