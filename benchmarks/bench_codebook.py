"""The codebook operators against plain torch.

    python -m benchmarks.bench_codebook [--rounds 15] [--threads 2] [--csv]

Shapes are Show-o's, 13 bits at 512x512 pixels (32x32 codes), and two usual vector-quantizer codebooks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.harness import measure, report, write_csv
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
        cases[f"codebook_lookup 8x1024 of {codes}x{dim} fwd+bwd"] = {
            "showo_ext": lambda i=ids, c=leaf, g=cotangent: torch.autograd.grad(codebook_lookup(i, c), c, g),
            "F.embedding": lambda i=ids, c=leaf, g=cotangent: torch.autograd.grad(
                torch.nn.functional.embedding(i, c), c, g
            ),
        }
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", action="store_true", help="append to benchmarks/results/codebook.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for title, case in {**lfq_cases(), **vq_cases()}.items():
        rows += measure("codebook", title, case, baseline="showo_ext", rounds=arguments.rounds)
    report(rows)
    if arguments.csv:
        print(f"appended to {write_csv(rows)}")


if __name__ == "__main__":
    main()
