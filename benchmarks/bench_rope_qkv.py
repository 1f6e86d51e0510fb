"""rope_qkv against the plain torch formula: bias, LayerNorm per head, rotary, head split.

    python -m benchmarks.bench_rope_qkv [--rounds 15] [--threads 2] [--csv]

Show-o's heads (32 of 64 dims, half of them turning), at the lengths of a picture at 256x256 and 512x512 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.harness import measure, report, write_csv
from showo_ext import reference, rope_qkv, rotary_tables
from showo_ext.testing import randn

HEADS, DIM = 32, 64


def cases(batch: int, length: int, dtype: torch.dtype) -> dict[str, dict[str, Callable[[], object]]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = 3 * HEADS * DIM
    qkv = randn(batch, length, width, dtype=dtype, device=device)
    leaf = qkv.clone().requires_grad_()
    tables = rotary_tables(torch.arange(length, device=device), DIM // 2)
    parameters = {
        n: randn(DIM, dtype=dtype, seed=1, device=device) for n in ("q_weight", "q_bias", "k_weight", "k_bias")
    }
    parameters["bias"] = randn(width, dtype=dtype, seed=2, device=device)
    cotangents = [randn(batch, HEADS, length, DIM, dtype=dtype, seed=i, device=device) for i in range(3)]

    def forward(function: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[[], object]:
        return lambda: function(qkv, tables, num_heads=HEADS, **parameters)

    def backward(function: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(leaf, tables, num_heads=HEADS, **parameters), leaf, cotangents)

    name = f"B{batch} S{length} H{HEADS} D{DIM} {str(dtype).removeprefix('torch.')}"
    return {
        f"{name} fwd": {"showo_ext": forward(rope_qkv), "plain torch": forward(reference.rope_qkv)},
        f"{name} fwd+bwd": {"showo_ext": backward(rope_qkv), "plain torch": backward(reference.rope_qkv)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", action="store_true", help="append to benchmarks/results/rope_qkv.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for length in (387, 1155):
        for dtype in (torch.float32, torch.bfloat16):
            for title, case in cases(2, length, dtype).items():
                rows += measure("rope_qkv", title, case, baseline="showo_ext", rounds=arguments.rounds)
    report(rows)
    if arguments.csv:
        print(f"appended to {write_csv(rows)}")


if __name__ == "__main__":
    main()
