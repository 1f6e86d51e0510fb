"""skinny_linear against torch's linear layer, at the sizes of the full model's MLP; int8 weights against dequantised.

python -m benchmarks.bench_skinny_linear [--rounds 15] [--threads 2] [--device cpu] [--csv]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.roofline import Work
from showo_ext import reference, skinny_linear
from showo_ext.testing import randint, randn

WIDTH, OUTPUTS = 2048, 8192


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    for rows in (1, 4, 16):
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            yield case(rows, dtype, device)


def case(rows: int, weights: torch.dtype, device: torch.device) -> Case:
    int8 = weights == torch.int8
    dtype = torch.bfloat16 if int8 else weights

    def inputs(i: int) -> tuple[Tensor | None, ...]:
        x = randn(rows, WIDTH, dtype=dtype, seed=3 * i, device=device)
        bias = randn(OUTPUTS, dtype=dtype, seed=3 * i + 1, device=device)
        if int8:
            weight = randint(-127, 128, (OUTPUTS, WIDTH), seed=3 * i + 2, device=device).to(torch.int8)
            return x, weight, bias, randn(OUTPUTS, seed=i, device=device)
        return x, randn(OUTPUTS, WIDTH, dtype=dtype, seed=3 * i + 2, device=device), bias, None

    def of(function: Callable[..., Tensor]) -> Callable[..., object]:
        return lambda x, weight, bias, scale: function(x, weight, bias, scale=scale)

    return Case(
        "skinny_linear",
        f"{rows} x {WIDTH} -> {OUTPUTS} {str(weights)[6:]}",
        {OURS: of(skinny_linear), "dequantised, F.linear" if int8 else "F.linear": of(reference.skinny_linear)},
        inputs,
        Work(2.0 * rows * WIDTH * OUTPUTS, nbytes(*(t for t in inputs(0) if t is not None)), dtype),
    )


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
