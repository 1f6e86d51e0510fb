"""The codebook operators against plain torch: `python -m benchmarks.bench_codebook [--rounds 9] [--threads 2]`.

Rivals take turns within each round, so that a busy machine disturbs all alike; the table shows medians and the ratio to
the operator. Shapes are Show-o's: 13 bits at 512x512 pixels (32x32 codes), and two usual vector-quantizer codebooks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from showo_ext import codebook_lookup, lfq_decode, lfq_encode, vq_encode
from showo_ext.testing import randint, randn

Case = dict[str, Callable[[], object]]


def lfq_cases() -> dict[str, Case]:
    z = randn(8, 13, 32, 32)
    ids = lfq_encode(z)
    powers = 2 ** torch.arange(12, -1, -1)
    entries = 2 * (torch.arange(2**13)[:, None] >> torch.arange(12, -1, -1) & 1).float() - 1
    return {
        "lfq_encode 8x13x32x32": {
            "showo_ext": lambda: lfq_encode(z),
            "permute, compare, weighted sum": lambda: ((z.permute(0, 2, 3, 1) > 0) * powers).sum(-1).flatten(1),
        },
        "lfq_decode 8x1024 -> 8x13x32x32": {
            "showo_ext": lambda: lfq_decode(ids, 13, 32, 32),
            "table lookup, permute": lambda: entries[ids].view(8, 32, 32, 13).permute(0, 3, 1, 2).contiguous(),
        },
    }


def vq_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for codes, dim in ((8192, 64), (16384, 8)):
        z, codebook = randn(1024, dim), randn(codes, dim, seed=1)
        ids = randint(0, codes, (8, 1024))
        leaf = codebook.clone().requires_grad_()
        cotangent = randn(8, 1024, dim, seed=2)
        cases[f"vq_encode 1024 of {codes}x{dim}"] = {
            "showo_ext": lambda z=z, c=codebook: vq_encode(z, c),
            "cdist, argmin": lambda z=z, c=codebook: torch.cdist(z, c).argmin(1),
        }
        cases[f"codebook_lookup 8x1024 of {codes}x{dim}, forward and backward"] = {
            "showo_ext": lambda i=ids, c=leaf, g=cotangent: torch.autograd.grad(codebook_lookup(i, c), c, g),
            "F.embedding": lambda i=ids, c=leaf, g=cotangent: torch.autograd.grad(
                torch.nn.functional.embedding(i, c), c, g
            ),
        }
    return cases


def medians(case: Case, rounds: int) -> dict[str, float]:
    """Milliseconds per call; each round times every rival once, after one call that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in case}
    for _ in range(rounds):
        for name, run in case.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for title, case in {**lfq_cases(), **vq_cases()}.items():
        print(f"{title} ({arguments.threads} threads)")
        results = medians(case, arguments.rounds)
        for name, milliseconds in results.items():
            print(f"  {name:32s} {milliseconds:9.3f} ms   x{milliseconds / results['showo_ext']:.2f}")


if __name__ == "__main__":
    main()
