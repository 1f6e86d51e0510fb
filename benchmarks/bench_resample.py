"""One MaskGIT step (guidance, choice, confidence, remasking) against the plain torch formula.

    python -m benchmarks.bench_resample [--threads 2] [--csv]

The formula is that of the official Show-o loop: guided logits, softmax, multinomial, gather, Gumbel confidence, sort.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, measure, report, write_csv
from showo_ext import corrupt_tokens, resample

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
    gumbel = -torch.log(-torch.log(torch.rand_like(chosen).clamp(min=1e-20)).clamp(min=1e-20))
    confidence = chosen.clamp(min=1e-20).log() + TEMPERATURE * gumbel
    cut = confidence.sort(-1).values[:, mask_len : mask_len + 1]
    return torch.where(confidence < cut, MASK_ID, sampled)


def corruption_formula(ids: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    count = max(1, round(ids.shape[1] * ratio))
    masked = torch.rand(ids.shape).argsort(-1) < count
    return torch.where(masked, MASK_ID, ids), torch.where(masked, ids, -100)


def run(batch: int, length: int, vocab: int, rounds: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(batch, length, vocab, generator=generator) * 2
    uncond = cond + torch.randn(batch, length, vocab, generator=generator)
    ids = torch.full((batch, length), MASK_ID)
    half_known = ids.masked_fill(torch.arange(length) % 2 == 0, 0)
    codes = torch.randint(vocab, (batch, length), generator=generator)

    def ours(canvas: Tensor = ids, dtype: torch.dtype = torch.float32, **how: float) -> Callable[[], object]:
        c, u = cond.to(dtype), uncond.to(dtype)
        return lambda: resample(
            c, canvas, length // 4, MASK_ID, uncond=u, guidance=GUIDANCE, remask_temperature=TEMPERATURE, seed=0, **how
        )

    def theirs(canvas: Tensor = ids, dtype: torch.dtype = torch.float32, **how: float) -> Callable[[], object]:
        c, u = cond.to(dtype), uncond.to(dtype)
        return lambda: formula(c, u, canvas, length // 4, **how)

    cases: dict[str, dict[str, Any]] = {
        "float32": {},
        "bfloat16": {"dtype": torch.bfloat16},
        "float32 half known": {"canvas": half_known},
        "float32 top_k=100": {"top_k": 100},
        "float32 top_p=0.9": {"top_p": 0.9},
    }
    rows = []
    size = f"B{batch} N{length} V{vocab}"
    for case, how in cases.items():
        candidates = {"showo_ext": ours(**how), "torch formula": theirs(**how)}
        rows += measure("resample", f"step {size} {case}", candidates, baseline="showo_ext", rounds=rounds)
    candidates = {
        "showo_ext": lambda: corrupt_tokens(codes, 0.6, MASK_ID, seed=0),
        "torch formula": lambda: corruption_formula(codes, 0.6),
    }
    rows += measure("resample", f"corrupt_tokens B{batch} N{length}", candidates, baseline="showo_ext", rounds=rounds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 1), ("length", 256), ("vocab", 8192), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", action="store_true", help="append the rows to benchmarks/results/resample.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = run(arguments.batch, arguments.length, arguments.vocab, arguments.rounds)
    report(rows)
    if arguments.csv:
        print(write_csv(rows))


if __name__ == "__main__":
    main()
