"""The codebook operators against plain torch.

    python -m benchmarks.bench_codebook [--rounds 15] [--threads 2] [--device cpu] [--csv]

Shapes are Show-o's, 13 bits at 512x512 pixels (32x32 codes), and usual vector-quantizer codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.roofline import Work
from showo_ext import codebook_lookup, lfq_decode, lfq_encode, vq_encode
from showo_ext.testing import randint, randn


def lfq_cases(batch: int, device: torch.device) -> Iterator[Case]:
    bits = torch.arange(12, -1, -1, device=device)
    entries = 2 * (torch.arange(2**13, device=device)[:, None] >> bits & 1).float() - 1
    powers = 2**bits
    z, ids = randn(batch, 13, 32, 32, device=device), randint(0, 2**13, (batch, 1024), device=device)
    work = Work(0.0, nbytes(z, ids), torch.float32)
    yield Case(
        "codebook",
        f"lfq_encode {batch}x13x32x32",
        {
            OURS: lfq_encode,
            "permute, compare, weighted sum": lambda z: ((z.permute(0, 2, 3, 1) > 0) * powers).sum(-1).flatten(1),
        },
        lambda i: (randn(batch, 13, 32, 32, seed=i, device=device),),
        work,
    )
    yield Case(
        "codebook",
        f"lfq_decode {batch}x1024 -> {batch}x13x32x32",
        {
            OURS: lambda ids: lfq_decode(ids, 13, 32, 32),
            "table lookup, permute": lambda ids: entries[ids].view(batch, 32, 32, 13).permute(0, 3, 1, 2).contiguous(),
        },
        lambda i: (randint(0, 2**13, (batch, 1024), seed=i, device=device),),
        work,
    )


def gradient(lookup: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., object]:
    return lambda ids, codebook, cotangent: torch.autograd.grad(lookup(ids, codebook), codebook, cotangent)


def vq_cases(rows: int, codes: int, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    def rows_and_codes(i: int) -> tuple[Tensor, ...]:
        return (
            randn(rows, dim, dtype=dtype, seed=2 * i, device=device),
            randn(codes, dim, dtype=dtype, seed=2 * i + 1, device=device),
        )

    def ids_and_codes(i: int) -> tuple[Tensor, ...]:
        return (
            randint(0, codes, (8, 1024), seed=3 * i, device=device),
            randn(codes, dim, seed=3 * i + 1, device=device).requires_grad_(),
            randn(8, 1024, dim, seed=3 * i + 2, device=device),
        )

    yield Case(
        "codebook",
        f"vq_encode {rows} of {codes}x{dim} {str(dtype)[6:]}",
        {OURS: vq_encode, "cdist, argmin": lambda z, c: torch.cdist(z.float(), c.float()).argmin(1)},
        rows_and_codes,
        Work(2.0 * rows * codes * dim, nbytes(*rows_and_codes(0)) + 8 * rows, dtype),
    )
    ids, codebook, cotangent = ids_and_codes(0)
    yield Case(
        "codebook",
        f"codebook_lookup 8x1024 of {codes}x{dim} fwd+bwd",
        {
            OURS: gradient(lambda ids, codebook: codebook_lookup(ids, codebook)),
            "F.embedding": gradient(lambda ids, codebook: embedding(ids, codebook)),
        },
        ids_and_codes,
        Work(0.0, nbytes(ids, ids, codebook, cotangent, cotangent) + nbytes(cotangent), torch.float32),
    )


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    yield from lfq_cases(64 if a100 else 8, device)
    for codes, dim in ((8192, 256), (16384, 8)) if a100 else ((8192, 64), (16384, 8)):
        yield from vq_cases(8192 if a100 else 1024, codes, dim, torch.bfloat16 if a100 else torch.float32, device)


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
