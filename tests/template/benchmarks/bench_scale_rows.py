"""scale_rows against a multiplication that broadcasts.

python -m benchmarks.bench_scale_rows [--rounds 15] [--threads 2] [--device cpu] [--csv]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.roofline import Work
from showo_ext import reference, scale_rows
from showo_ext.testing import randn


def gradient(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., object]:
    return lambda x, scale, dy: torch.autograd.grad(function(x, scale), (x, scale), dy)


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    rows, columns, dtype = (65536, 2048, torch.bfloat16) if a100 else (2048, 512, torch.float32)

    def inputs(i: int) -> tuple[Tensor, ...]:
        shapes = ((rows, columns), (rows,), (rows, columns))
        x, scale, dy = (randn(*s, dtype=dtype, seed=3 * i + j, device=device) for j, s in enumerate(shapes))
        return x.requires_grad_(), scale.requires_grad_(), dy

    moved = 5 * nbytes(inputs(0)[0])  # forward reads x and writes y, backward reads x and dy and writes dx
    yield Case(
        "scale_rows",
        f"{rows}x{columns} {str(dtype)[6:]} fwd+bwd",
        {OURS: gradient(scale_rows), "plain torch": gradient(reference.scale_rows)},
        inputs,
        Work(0.0, moved, dtype),
    )


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
