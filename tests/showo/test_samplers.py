"""Every sampler against a plain twin, written from the paper's formula place by place; guidance schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from showo.engine.composing import Others
from showo.engine.generate import GenerationStep, generate_codes
from showo.engine.guidance import guidance_weights
from showo.engine.samplers import Drawn, Filling, Prediction, Sampler, find_sampler
from showo.engine.samplers.halton import Halton, halton_order
from showo.engine.schedule import mask_schedule
from showo.engine.session import Session
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting
from showo_ext.testing import randn, uniforms

OFFSET, CODES, GRID, STEPS, GUIDANCE = 100, 12, (4, 6), 7, 1.5
PLACES = GRID[0] * GRID[1]
MASK = OFFSET + CODES
NAMES = ("confidence", "linear-temperature", "halton", "entropy-bound:0.5", "remask:0.4")


def start(seed: int) -> Tensor:
    """Three pictures: all masked, some known, nothing to fill."""
    canvas = torch.full((3, PLACES), MASK)
    canvas[1, uniforms(PLACES, seed=seed) < 0.3] = OFFSET + 5
    canvas[2] = OFFSET + 2
    return canvas


def filling(canvas: Tensor, **changes: object) -> Filling:
    weights = torch.full((STEPS,), GUIDANCE, dtype=torch.float64)
    options: dict[str, object] = {"temperature": 2.0, **changes}
    seeds = torch.arange(3)
    return Filling(canvas, GRID, STEPS, weights, seeds, MASK, OFFSET, mask_schedule("cosine"), **options)  # type: ignore[arg-type]


def predictions(seed: int) -> Iterator[Prediction]:
    for step in range(STEPS):
        at = [seed + 10 * step + i for i in range(4)]
        shape = (3, PLACES, CODES)
        cond, uncond = (randn(*shape, seed=s, scale=2.0) for s in at[:2])
        yield Prediction(cond, uncond, uniforms(*shape, seed=at[2]), uniforms(3, PLACES, seed=at[3]))


def run(name: str, canvas: Tensor, seed: int, **changes: object) -> Iterator[tuple[Drawn, Prediction]]:
    sampler: Sampler = find_sampler(name)(filling(canvas, **changes))
    for step, prediction in enumerate(predictions(seed)):
        out = sampler.step(step, prediction, canvas)
        yield out, prediction
        canvas = out.ids


# ---------------------------------------------------------------- twins: one picture, Python numbers


class Place:
    """What the model says of one place: probabilities after guidance, the token drawn, its log p and the entropy."""

    def __init__(self, prediction: Prediction, row: int, place: int) -> None:
        cond = prediction.cond[row, place].double()
        assert prediction.uncond is not None
        assert prediction.noise is not None
        logp = ((1 + GUIDANCE) * cond - GUIDANCE * prediction.uncond[row, place].double()).log_softmax(0)
        self.code = int((logp - (-prediction.noise[row, place].double().log()).log()).argmax())
        self.logp = float(logp[self.code])
        self.entropy = -float((logp.exp() * logp).sum())


def places_of(prediction: Prediction, row: int) -> tuple[list[Place], list[float]]:
    assert prediction.place_noise is not None
    return [Place(prediction, row, n) for n in range(PLACES)], prediction.place_noise[row].tolist()


def share(step: int) -> float:
    """The share that is masked before a step."""
    return max(0.0, math.cos(step / STEPS * math.pi / 2))


def left(unknown: int, step: int) -> int:
    """The official number of masks after a step."""
    return max(1, min(unknown - 1, math.floor(PLACES * share(step + 1))))


def by_confidence(
    temperature: float,
) -> Callable[[list[int], int, list[Place], list[float], list[int]], list[int]]:
    def step_of(ids: list[int], step: int, places: list[Place], noise: list[float], given: list[int]) -> list[int]:
        wanted = [n for n in range(PLACES) if ids[n] == MASK]
        sure = {n: places[n].logp - temperature * math.log(-math.log(noise[n])) for n in wanted}
        again = sorted(wanted, key=lambda n: sure[n])[: left(len(wanted), step)] if wanted else []
        return [MASK if n in again else OFFSET + places[n].code if n in wanted else ids[n] for n in range(PLACES)]

    return step_of


def confidence(ids: list[int], step: int, *rest: object) -> list[int]:
    rule = 2.0
    for earlier in range(step + 1):
        rule *= 1 - (earlier + 1) / STEPS
    return by_confidence(rule)(ids, step, *rest)  # type: ignore[arg-type]


def linear_temperature(ids: list[int], step: int, *rest: object) -> list[int]:
    return by_confidence(2.0 * (1 - (step + 1) / STEPS))(ids, step, *rest)  # type: ignore[arg-type]


def radical_inverse(i: int, base: int) -> Fraction:
    digits = []
    while i:
        i, digit = divmod(i, base)
        digits.append(digit)
    return sum((Fraction(digit, base ** (k + 1)) for k, digit in enumerate(digits)), Fraction(0))


def halton_places(height: int, width: int) -> list[int]:
    order: dict[int, None] = {}
    i = 1
    while len(order) < height * width:
        row, column = int(radical_inverse(i, 3) * height), int(radical_inverse(i, 2) * width)
        order.setdefault(row * width + column)
        i += 1
    return list(order)


def halton(ids: list[int], step: int, places: list[Place], noise: list[float], given: list[int]) -> list[int]:
    waiting = [n for n in halton_places(*GRID) if ids[n] == MASK]
    keep = left(len(waiting), step) if step + 1 < STEPS else 0
    now = waiting[: len(waiting) - keep]
    return [OFFSET + places[n].code if n in now else ids[n] for n in range(PLACES)]


def entropy_bound(ids: list[int], step: int, places: list[Place], noise: list[float], given: list[int]) -> list[int]:
    now: list[int] = []
    for n in sorted((n for n in range(PLACES) if ids[n] == MASK), key=lambda n: places[n].entropy):
        entropies = [places[m].entropy for m in [*now, n]]
        if sum(entropies) - max(entropies) > 0.5 and step + 1 < STEPS:
            break
        now.append(n)
    return [OFFSET + places[n].code if n in now else ids[n] for n in range(PLACES)]


def remask(ids: list[int], step: int, places: list[Place], noise: list[float], given: list[int]) -> list[int]:
    a, b = 1 - share(step), 1 - share(step + 1)  # alpha of z_t and of z_s, in the paper's words
    sigma = min(0.4, (1 - b) / a) if step else 0.0
    fill = (b - (1 - sigma) * a) / (1 - a) if step + 1 < STEPS else 1.0
    out = list(ids)
    for n in range(PLACES):
        if ids[n] == MASK:
            out[n] = OFFSET + places[n].code if noise[n] < fill else MASK
        elif given[n] == MASK and noise[n] < sigma:
            out[n] = MASK
    return out


TWINS = (confidence, linear_temperature, halton, entropy_bound, remask)


@pytest.mark.parametrize(("name", "twin"), [*zip(NAMES, TWINS, strict=True)], ids=NAMES)
@pytest.mark.parametrize("seed", [0, 1000])
def test_each_sampler_is_its_formula(name: str, twin: Callable[..., list[int]], seed: int) -> None:
    canvas = start(seed)
    given, expected = canvas.tolist(), canvas.tolist()
    masks = []
    for step, (out, prediction) in enumerate(run(name, canvas, seed)):
        expected = [twin(expected[b], step, *places_of(prediction, b), given[b]) for b in range(3)]
        assert out.ids.tolist() == expected
        assert torch.equal(out.masked, out.ids == MASK)
        assert torch.equal(out.sampled[~out.masked], out.ids[~out.masked])
        assert int(out.sampled.min()) >= OFFSET
        assert int(out.sampled.max()) < MASK
        masks.append(out.masked.sum(1).tolist())
    assert all(row[2] == 0 for row in masks)
    assert len({row[0] for row in masks}) > 2  # over several steps


@pytest.mark.parametrize("name", NAMES)
def test_noise_follows_from_the_seed_of_the_row_alone(name: str) -> None:
    """Philox by seed and step: a row alone is what it was among others; another step draws other numbers."""
    everything = [Prediction(p.cond, p.uncond) for p in predictions(3)]
    whole = filling(start(3))
    sampler, canvas = find_sampler(name)(whole), whole.canvas
    for step, prediction in enumerate(everything):
        canvas = sampler.step(step, prediction, canvas).ids
    alone = Filling(**{**vars(whole), "canvas": whole.canvas[1:2], "seeds": whole.seeds[1:2]})
    sampler, row = find_sampler(name)(alone), alone.canvas
    for step, prediction in enumerate(everything):
        assert prediction.uncond is not None
        row = sampler.step(step, Prediction(prediction.cond[1:2], prediction.uncond[1:2]), row).ids
    assert torch.equal(row[0], canvas[1])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3), (16, 16), (32, 24)])
def test_halton_order(height: int, width: int) -> None:
    assert halton_order(height, width).tolist() == halton_places(height, width)


def test_the_entropy_is_that_of_what_is_drawn_from() -> None:
    """Of its two best codes alone, a place has an entropy of at most log 2: four are within two nats and a half."""
    canvas = torch.full((3, PLACES), MASK)
    for name, top_k, fewest in (("entropy-bound:2.5", 2, 4), ("entropy-bound:2.5", 0, 1)):
        flat = Prediction(torch.zeros(3, PLACES, CODES), torch.zeros(3, PLACES, CODES))
        out = find_sampler(name)(filling(canvas, top_k=top_k)).step(0, flat, canvas)
        assert (PLACES - out.masked.sum(1)).tolist() == [fewest] * 3 if top_k else [2] * 3


@pytest.mark.parametrize("name", ["halton", "entropy-bound:0", "remask:1"])
def test_the_last_step_draws_all_that_is_left(name: str) -> None:
    masks = [out.masked.sum(1).tolist() for out, _ in run(name, start(5), 5)]
    assert masks[-2][0] > 1
    assert masks[-1] == [0, 0, 0]


def test_remasking_keeps_the_schedule_on_the_average() -> None:
    canvas = torch.full((400, PLACES), MASK)
    options = {**vars(filling(canvas)), "seeds": torch.arange(400)}
    sampler, shown = find_sampler("remask:0.3")(Filling(**options)), []
    flat = Prediction(torch.zeros(400, PLACES, CODES), None)
    before = canvas
    for step in range(STEPS):
        out = sampler.step(step, flat, before)
        again = (before != MASK) & out.masked
        assert bool(again.any()) == (0 < step < STEPS - 1)
        before = out.ids
        shown.append(float(out.masked.double().mean()))
    assert shown == pytest.approx([share(step + 1) for step in range(STEPS)], abs=0.03)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "sampler must be confidence, "),
        ("gibbs", "got 'gibbs'"),
        ("halton:3", "got 'halton:3'"),
        ("entropy-bound:", "a budget in nats, 0 or more, got ''"),
        ("entropy-bound:-1", "got '-1'"),
        ("entropy-bound:1e999", "got '1e999'"),
        ("remask:1.5", "a probability, 0 to 1, got '1.5'"),
        ("remask:nan", "got 'nan'"),
    ],
)
def test_unknown_samplers(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sampler(name)


# ---------------------------------------------------------------- in a generation


@pytest.mark.parametrize("name", NAMES[1:])
def test_generation_with_each_sampler(model: Showo, prompting: Prompting, name: str) -> None:
    """All places get a code, the cached and the official path agree, neighbours play no part."""
    texts, seen = [[1, 2], [3]], []
    options = {"steps": 5, "sampler": name}
    codes = generate_codes(model, prompting, texts, seed=8, callback=seen.append, **options)  # type: ignore[arg-type]
    assert [step.step for step in seen] == list(range(5))
    assert all(int(step.codes.min()) >= 0 and int(step.codes.max()) < 64 for step in seen)
    assert torch.equal(codes, generate_codes(model, prompting, texts, seed=8, official=True, **options))  # type: ignore[arg-type]
    assert torch.equal(codes[1:], generate_codes(model, prompting, texts[1:], seed=9, **options))  # type: ignore[arg-type]
    assert not torch.equal(codes, generate_codes(model, prompting, texts, seed=8, steps=5))


def test_a_picture_that_is_done_early_asks_the_model_no_more(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    heard: list[GenerationStep] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda *given: asked.append(1) or logits(*given))
    options = {"sampler": "entropy-bound:1000", "guidance": 0.0}
    codes = generate_codes(model, prompting, [[1]], steps=9, callback=heard.append, **options)  # type: ignore[arg-type]
    assert len(asked) == 1
    assert len(heard) == 9
    assert all(torch.equal(step.codes, codes) and not step.masked.any() for step in heard)
    assert torch.equal(codes, generate_codes(model, prompting, [[1]], steps=1, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("also", [None, [[([4], 0.5)], []]])
def test_halton_computes_the_places_that_it_draws(
    model: Showo, prompting: Prompting, monkeypatch: pytest.MonkeyPatch, also: list[Others] | None
) -> None:
    """The last layer's queries, its MLP and the head; with guidance for all conditions. Rows differ in what is known,
    and 20 steps for 16 places have some that draw nothing. The codes are those of whole pictures, computed officially.
    """
    vocab, seen = model.config.vocabulary, dict[str, list[torch.Size]]()
    model.showo.lm_head.bias.data.zero_()  # so that no code is the likeliest at every place
    canvas = torch.full((2, 16), vocab.mask_id)
    canvas[1, 3:9] = vocab.image_offset
    last = model.showo.model.layers[-1]
    watched = {"queries": last.self_attn.q_proj, "mlp": last.mlp, "head": model.showo.lm_head}
    options = {"canvas": canvas, "sampler": "halton", "steps": 20, "grid": (2, 8), "seed": 6, "also": also}
    with monkeypatch.context() as patch:
        patch.setattr(Halton, "places", Sampler.places)
        expected = generate_codes(model, prompting, [[1, 2], [3]], official=True, **options)  # type: ignore[arg-type]
    for name, module in watched.items():
        module.register_forward_hook(lambda _, given, __, name=name: seen.setdefault(name, []).append(given[0].shape))
    open_image = Session.open_image
    # What the texts took, which are read before the picture is begun, does not count.
    monkeypatch.setattr(Session, "open_image", lambda *given: (seen.clear(), open_image(*given))[1])
    codes = generate_codes(model, prompting, [[1, 2], [3]], **options)  # type: ignore[arg-type]
    assert torch.equal(codes, expected)
    rows = 4 if also is None else 6
    for name in watched:
        assert {shape[0] for shape in seen[name]} == {rows}
        assert sum(shape[1] for shape in seen[name]) == 16  # as many as the fuller row has
        assert len(seen[name]) < 20


def test_halton_wants_the_shape_of_a_canvas(model: Showo, prompting: Prompting) -> None:
    canvas = torch.full((1, 12), model.config.vocabulary.mask_id)
    options = {"steps": 2, "sampler": "halton", "canvas": canvas}
    with pytest.raises(UserError, match="12 codes are no square: give the grid"):
        generate_codes(model, prompting, [[1]], **options)  # type: ignore[arg-type]
    assert generate_codes(model, prompting, [[1]], grid=(3, 4), **options).shape == (1, 12)  # type: ignore[arg-type]


# ---------------------------------------------------------------- composed prompts


@pytest.mark.parametrize("official", [False, True])
def test_composed_prompts(model: Showo, prompting: Prompting, official: bool) -> None:
    """A picture with others as alone; further prompts of weight 0 are guidance; a prompt split in two is the prompt."""
    texts, steps = [[1, 2], [3]], {"steps": 4, "official": official}
    also = [[([5], 1.5), ([6, 7], -0.75)], []]
    codes = generate_codes(model, prompting, texts, also=also, guidance=1.0, seed=3, **steps)  # type: ignore[arg-type]
    alone = generate_codes(model, prompting, texts[:1], also=also[:1], guidance=1.0, seed=3, **steps)  # type: ignore[arg-type]
    assert torch.equal(codes[:1], alone)
    plain = generate_codes(model, prompting, texts, guidance=1.0, seed=3, **steps)  # type: ignore[arg-type]
    assert not torch.equal(codes[0], plain[0])
    assert torch.equal(codes[1], plain[1])
    unsaid = generate_codes(model, prompting, texts, also=[[([5], 0.0)]] * 2, guidance=1.0, seed=3, **steps)  # type: ignore[arg-type]
    assert torch.equal(unsaid, plain)
    split = generate_codes(model, prompting, [[1, 2]], also=[[([1, 2], 1.5)]], guidance=0.25, seed=3, **steps)  # type: ignore[arg-type]
    whole = generate_codes(model, prompting, [[1, 2]], guidance=1.75, seed=3, **steps)  # type: ignore[arg-type]
    assert (split == whole).double().mean() > 0.9  # but for rounding


def test_composed_prompts_with_a_schedule_and_another_sampler(model: Showo, prompting: Prompting) -> None:
    options = {"steps": 4, "seed": 3, "guidance": 0.0, "also": [[([5], 4.0)]]}
    free = generate_codes(model, prompting, [[1, 2]], steps=4, seed=3, guidance=0.0)
    assert torch.equal(generate_codes(model, prompting, [[1, 2]], guidance_schedule="off1", **options), free)  # type: ignore[arg-type]
    assert not torch.equal(generate_codes(model, prompting, [[1, 2]], guidance_schedule="linear", **options), free)  # type: ignore[arg-type]
    canvas = torch.full((3, PLACES), MASK)
    weights = torch.tensor([[1.5, -0.5], [2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    told = filling(canvas, weights=weights.expand(STEPS, 3, 2))
    conditions, uncond = randn(2, 3, PLACES, CODES, seed=1), randn(3, PLACES, CODES, seed=2)
    combined = torch.stack(
        [uncond[b] + sum(weights[b, i] * (conditions[i, b] - uncond[b]) for i in range(2)) for b in range(3)]
    )
    torch.testing.assert_close(told.guided(0, Prediction(conditions, uncond)), combined.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ([[]], "also: 1 lists of further prompts for 2 pictures"),
        ([[([1], 1.0)] * 8, []], "also: a picture has 9 prompts, at most 8"),
        ([[([1], math.nan)], []], "also: a weight must be a number from -1e30 to 1e30, got nan"),
    ],
)
def test_composed_mistakes(
    model: Showo, prompting: Prompting, also: list[list[tuple[list[int], float]]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate_codes(model, prompting, [[1], [2]], also=also)


# ---------------------------------------------------------------- guidance schedules


def test_guidance_schedules() -> None:
    assert guidance_weights(3.0, 3) == [3.0, 3.0, 3.0]
    assert guidance_weights(3.0, 4, "linear") == [0.75, 1.5, 2.25, 3.0]
    assert guidance_weights(3.0, 4, "off0.25") == [3.0, 3.0, 3.0, 0.0]
    assert guidance_weights(3.0, 10, "off0.3") == [3.0] * 7 + [0.0] * 3
    assert guidance_weights(3.0, 2, "off0.25") == [3.0, 3.0]
    for name in ("", "cosine", "off", "off1.5", "off-1", "offx"):
        with pytest.raises(UserError, match="guidance schedule must be constant, linear or off<share>"):
            guidance_weights(3.0, 4, name)


def test_a_schedule_guides_each_step_by_its_weight(model: Showo, prompting: Prompting) -> None:
    """Without guidance from the first step on: as with none; without it from the second on: another first step."""
    options = {"steps": 4, "seed": 3}
    free = generate_codes(model, prompting, [[1, 2]], guidance=0.0, **options)  # type: ignore[arg-type]
    assert torch.equal(generate_codes(model, prompting, [[1, 2]], guidance_schedule="off1", **options), free)  # type: ignore[arg-type]
    drawn: dict[str, list[Tensor]] = {}
    for name in ("constant", "linear", "off0.75"):
        steps: list[GenerationStep] = []
        generate_codes(
            model, prompting, [[1, 2]], guidance=9.0, guidance_schedule=name, callback=steps.append, **options
        )  # type: ignore[arg-type]
        drawn[name] = [step.codes for step in steps]
    assert torch.equal(drawn["constant"][0], drawn["off0.75"][0])
    assert not torch.equal(drawn["constant"][-1], drawn["off0.75"][-1])
    assert not torch.equal(drawn["constant"][0], drawn["linear"][0])
