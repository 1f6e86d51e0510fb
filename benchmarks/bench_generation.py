"""A step of generation with guidance at the released models' sizes: ours, the official formula, and a lower bound.

    python -m benchmarks.bench_generation [--codes 256] [--dtype float32] [--layers 24] [--rounds 3] [--csv]
    python -m benchmarks.bench_generation --tiny --rounds 200     # at the size of the bundled model

Random weights, one picture, a prompt of 20 tokens, the step in the middle of 18. Ours is what `generate_codes` does in
a step: logits of the image places from the cached prompts, then one call of the sampling kernel. With the sampler
halton the last layer and the head compute only the places that the step draws, here 17 of 256 (or 4 of 64), which is
compared with the same sampler on logits of all places. The official formula is
plain torch in fp32 whatever --dtype says: padded rows with a dense mask, all ids of the vocabulary, softmax,
multinomial and a sort. The lower bound is the matrix products of our step alone, by torch, in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_step_memory import make_eager
from benchmarks.harness import OURS, Case, arguments, measure, report, write_csv
from benchmarks.roofline import Work
from showo.config import ShowoConfig, official
from showo.engine.loading import SHOWO_FOLDER, bundled_checkpoint
from showo.engine.open_canvas import spread
from showo.engine.samplers import Filling, Prediction, find_sampler
from showo.engine.schedule import mask_schedule
from showo.engine.session import Session
from showo.model.transformer import Showo
from showo.model.weights import read_config
from showo.prompting import Prompting

GUIDANCE, STEPS, PROMPT = 1.75, 18, 20
MIDDLE = STEPS // 2
EOT = 50256


def our_logits(
    model: Showo, prompting: Prompting, canvas: Tensor, wanted: Tensor | None = None
) -> Callable[[], Tensor]:
    """[2, N, codes], with and without the prompt. wanted: int64 [1, n], the places that are computed; None is all."""
    places = canvas.shape[1]
    texts: list[list[int]] = [list(range(PROMPT)), []]
    session = Session(model, 2)
    session.append(prompting.lvg([[text] for text in texts], [torch.empty(0, places, dtype=torch.int64)] * 2))
    image = session.open_image(places)
    if wanted is None:
        return lambda: image.logits(canvas)
    return lambda: spread(image.logits(canvas, places=wanted.expand(2, -1)), wanted, places)


def official_logits(model: Showo, prompting: Prompting, canvas: Tensor) -> Callable[[], Tensor]:
    """[2, S, V] of padded rows; `model` is given over to it."""
    rows = prompting.t2i([list(range(PROMPT)), []], canvas.expand(2, -1))
    make_eager(model, rows.mask)
    return torch.no_grad()(lambda: model(rows.input_ids, mask=rows.mask))


def our_step(
    model: Showo, prompting: Prompting, canvas: Tensor, name: str = "confidence", *, whole: bool = False
) -> Callable[[], object]:
    """The step in the middle with the sampler of this name. whole: all places are computed, whatever it looks at."""
    vocab = model.config.vocabulary
    guidance = torch.full((STEPS,), GUIDANCE, dtype=torch.float64)
    seeds = torch.zeros(1, dtype=torch.int64)
    blank = torch.full_like(canvas, vocab.mask_id)
    filling = Filling(blank, None, STEPS, guidance, seeds, vocab.mask_id, vocab.image_offset, mask_schedule("cosine"))
    sampler = find_sampler(name)(filling)
    logits = our_logits(model, prompting, canvas, None if whole else sampler.places(MIDDLE))

    def step() -> object:
        return sampler.step(MIDDLE, Prediction(*logits().chunk(2)), canvas)

    return step


def official_step(model: Showo, prompting: Prompting, canvas: Tensor) -> Callable[[], object]:
    """showlab/Show-o, models/modeling_showo.py (t2i_generate) and models/sampling.py (mask_by_random_topk)."""
    vocab, places = model.config.vocabulary, canvas.shape[1]
    logits_of_rows = official_logits(model, prompting, canvas)
    mask_len = torch.tensor([[places // 2]])

    @torch.no_grad()
    def step() -> object:
        cond, uncond = logits_of_rows().chunk(2)
        logits = (1 + GUIDANCE) * cond - GUIDANCE * uncond
        probabilities = logits[:, -(places + 1) : -1, vocab.image_offset : -1].softmax(dim=-1)
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1)[:, 0].view(1, places)
        unknown = canvas == vocab.mask_id
        codes = torch.where(unknown, drawn, canvas - vocab.image_offset)
        chosen = torch.gather(probabilities, -1, codes[..., None])[..., 0]
        chosen = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max)
        noise = -torch.log(-torch.log(torch.rand_like(chosen).clamp(min=1e-20)).clamp(min=1e-20))
        confidence = torch.log(chosen.clamp(min=1e-20)) + noise
        cut_off = torch.gather(confidence.sort(dim=-1).values, 1, mask_len)
        return torch.where(confidence < cut_off, vocab.mask_id, codes + vocab.image_offset)

    return step


def products(model: Showo, places: int) -> Callable[[], object]:
    """The linear layers on as many rows as our step gives them: of the last layer, q and MLP get the image places."""
    config = model.config
    first, end = config.vocabulary.image_range
    rows = torch.randn(2 * (places + 2), config.hidden_size, dtype=model.dtype)
    wide = torch.randn(2 * (places + 2), config.intermediate_size, dtype=model.dtype)
    some = slice(2 * places)

    @torch.inference_mode()
    def multiply() -> None:
        last = model.showo.model.layers[-1]
        for block in model.showo.model.layers:
            wanted = some if block is last else slice(None)
            attention = block.self_attn
            for layer in (attention.k_proj, attention.v_proj):
                F.linear(rows, layer.weight, layer.bias)
            for layer in (attention.q_proj, attention.dense, block.mlp.fc1):
                F.linear(rows[wanted], layer.weight, layer.bias)
            F.linear(wide[wanted], block.mlp.fc2.weight, block.mlp.fc2.bias)
        F.linear(rows[some], model.showo.lm_head.weight[first:end], model.showo.lm_head.bias[first:end])

    return multiply


def cases(config: ShowoConfig, dtype: torch.dtype) -> Iterator[Case]:
    codes = config.num_vq_tokens
    torch.manual_seed(0)
    model = Showo(config)
    with torch.device("meta"):
        eager = Showo(config)
    eager.load_state_dict(model.state_dict(), assign=True)  # the same tensors
    ours = model if dtype == torch.float32 else _converted(model, dtype)
    prompting = Prompting.for_model(config, eot=min(EOT, config.text_vocab_size - 1))
    vocab = config.vocabulary
    canvas = torch.randint(vocab.image_offset, vocab.mask_id, (1, codes))
    canvas[:, ::2] = vocab.mask_id
    candidates: dict[str, Callable[..., object] | str] = {
        OURS: our_step(ours, prompting, canvas),
        "ours, sampler halton": our_step(ours, prompting, canvas, "halton"),
        "the same, all places": our_step(ours, prompting, canvas, "halton", whole=True),
        "official formula, eager, fp32": official_step(eager, prompting, canvas),
        "our matrix products alone": products(ours, codes),
    }
    name = f"step with guidance, {codes} codes, {str(dtype).removeprefix('torch.')}, {config.num_layers} layers"
    yield Case("generation", name, candidates, lambda _: (), Work(0, 0, dtype))


def _converted(model: Showo, dtype: torch.dtype) -> Showo:
    with torch.device("meta"):
        other = Showo(model.config)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, assign=True)
    return other


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="the bundled model's sizes instead of --codes and --layers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    config = replace(official(num_vq_tokens=options.codes), num_layers=options.layers)
    if options.tiny:
        config = read_config(bundled_checkpoint() / SHOWO_FOLDER, ShowoConfig)
    for case in cases(config, getattr(torch, options.dtype)):
        rows += measure(case, rounds=options.rounds, warmup=1)
    report(rows)
    if options.csv:
        print(f"appended to {write_csv(rows)}")


if __name__ == "__main__":
    main()
