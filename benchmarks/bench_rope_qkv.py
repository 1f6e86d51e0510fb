"""rope_qkv against the plain torch formula: bias, LayerNorm per head, rotary, head split.

    python -m benchmarks.bench_rope_qkv [--rounds 15] [--threads 2] [--device cpu] [--csv]

Show-o's heads (32 of 64 dims, half of them turning), at the lengths of a picture at 256x256 and 512x512 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.roofline import Work
from showo_ext import reference, rope_qkv, rotary_tables
from showo_ext.testing import randn

HEADS, DIM = 32, 64


def length_cases(batch: int, length: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    width = 3 * HEADS * DIM
    tables = rotary_tables(torch.arange(length, device=device), DIM // 2)
    names = ("q_weight", "q_bias", "k_weight", "k_bias")
    parameters = {n: randn(DIM, dtype=dtype, seed=1, device=device) for n in names}
    parameters["bias"] = randn(width, dtype=dtype, seed=2, device=device)

    def forward(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda qkv: function(qkv, tables, num_heads=HEADS, **parameters)

    def gradient(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., object]:
        return lambda qkv, *cotangents: torch.autograd.grad(forward(function)(qkv), qkv, cotangents)

    def inputs(i: int) -> tuple[Tensor, ...]:
        return (randn(batch, length, width, dtype=dtype, seed=i, device=device),)

    def inputs_and_gradients(i: int) -> tuple[Tensor, ...]:
        leaf = inputs(i)[0].requires_grad_()
        return leaf, *(randn(batch, HEADS, length, DIM, dtype=dtype, seed=i + j, device=device) for j in range(3))

    name = f"B{batch} S{length} H{HEADS} D{DIM} {str(dtype)[6:]}"
    functions = {OURS: rope_qkv, "plain torch": reference.rope_qkv}
    moved = 2 * nbytes(inputs(0)[0])  # read once, written once
    yield Case(
        "rope_qkv", f"{name} forward", {n: forward(f) for n, f in functions.items()}, inputs, Work(0.0, moved, dtype)
    )
    yield Case(
        "rope_qkv",
        f"{name} fwd+bwd",
        {n: gradient(f) for n, f in functions.items()},
        inputs_and_gradients,
        Work(0.0, 7 / 3 * moved, dtype),  # backward reads q and k again and three gradients, writes one
    )


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    for length in (387, 1155):
        for dtype in (torch.bfloat16,) if a100 else (torch.float32, torch.bfloat16):
            yield from length_cases(8 if a100 else 2, length, dtype, device)


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
