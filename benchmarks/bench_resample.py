"""One MaskGIT step (guidance, choice, confidence, remasking) against the plain torch formula.

    python -m benchmarks.bench_resample [--rounds 15] [--threads 2] [--device cpu] [--csv]

The formula is that of the official Show-o loop: guided logits, softmax, multinomial, gather, Gumbel confidence, sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, arguments, run
from benchmarks.roofline import Work
from showo_ext import corrupt_tokens, resample
from showo_ext.testing import randint, randn

MASK_ID = 2**20
GUIDANCE = 1.75
TEMPERATURE = 0.5


def formula(cond: Tensor, uncond: Tensor, ids: Tensor, mask_len: int, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The step in plain torch, as a user would write it."""
    logits = (1 + GUIDANCE) * cond.float() - GUIDANCE * uncond.float()
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        sorted_logits, order = logits.sort(descending=True)
        probabilities = sorted_logits.softmax(-1)
        dropped = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    probabilities = logits.softmax(-1)
    sampled = torch.multinomial(probabilities.flatten(0, -2), 1).view(ids.shape)
    unknown = ids == MASK_ID
    chosen = probabilities.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    sampled = torch.where(unknown, sampled, ids)
    chosen = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max)
    exponential = -torch.log(torch.rand_like(chosen).clamp(min=1e-20))
    gumbel = -torch.log(exponential.clamp(min=1e-20))
    confidence = chosen.clamp(min=1e-20).log() + TEMPERATURE * gumbel
    cut = confidence.sort(-1).values[:, mask_len : mask_len + 1]
    return torch.where(confidence < cut, MASK_ID, sampled)


def corruption_formula(ids: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    count = max(1, round(ids.shape[1] * ratio))
    masked = torch.rand(ids.shape, device=ids.device).argsort(-1) < count
    return torch.where(masked, MASK_ID, ids), torch.where(masked, ids, -100)


def step_case(
    name: str,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    half_known: bool = False,
    **how: Any,
) -> Case:
    """One step over all positions; half of them may be known already, whose logits nobody needs."""
    batch, length, vocab = shape
    canvas = torch.full((batch, length), MASK_ID, device=device)
    if half_known:
        canvas[:, ::2] = 0

    def inputs(i: int) -> tuple[Tensor, ...]:
        cond = randn(batch, length, vocab, seed=2 * i, device=device) * 2
        return cond.to(dtype), (cond + randn(batch, length, vocab, seed=2 * i + 1, device=device)).to(dtype)

    def ours(cond: Tensor, uncond: Tensor) -> object:
        options = {"guidance": GUIDANCE, "remask_temperature": TEMPERATURE, "seed": 0, **how}
        return resample(cond, canvas, length // 4, MASK_ID, uncond=uncond, **options)

    candidates: dict[str, Callable[..., object] | str] = {
        OURS: ours,
        "torch formula": lambda cond, uncond: formula(cond, uncond, canvas, length // 4, **how),
    }
    needed = 2 * int((canvas == MASK_ID).sum()) * vocab
    work = Work(4.0 * needed, float(needed * dtype.itemsize), torch.float32)
    return Case("resample", f"step B{batch} N{length} V{vocab} {name}", candidates, inputs, work)


def corrupt_case(batch: int, length: int, vocab: int, device: torch.device) -> Case:
    return Case(
        "resample",
        f"corrupt_tokens B{batch} N{length}",
        {
            OURS: lambda ids: corrupt_tokens(ids, 0.6, MASK_ID, seed=0),
            "torch formula": lambda ids: corruption_formula(ids, 0.6),
        },
        lambda i: (randint(0, vocab, (batch, length), seed=i, device=device),),
        Work(0.0, 24.0 * batch * length, torch.float32),  # ids read; inputs and labels written
    )


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    vocab = 8192
    sizes = ((8, 256), (8, 1024)) if a100 else ((1, 256),)
    settings: dict[str, dict[str, Any]] = {
        "float32": {},
        "bfloat16": {"dtype": torch.bfloat16},
        "float32 half known": {"half_known": True},
        "float32 top_k=100": {"top_k": 100},
        "float32 top_p=0.9": {"top_p": 0.9},
    }
    for batch, length in sizes:
        for name, how in settings.items():
            yield step_case(name, (batch, length, vocab), device, **how)
        yield corrupt_case(batch, length, vocab, device)


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
