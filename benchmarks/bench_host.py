"""What a call costs the host: Python and torch's dispatcher, forward and backward, on tensors of a few numbers.

    python -m benchmarks.bench_host [--rounds 15] [--threads 1] [--device cpu] [--csv]

The kernels have next to nothing to do here, so the times are those of the host, for CALLS calls in a row. On a GPU they
bound every operator whose kernels take less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from benchmarks.harness import OURS, Case, arguments, run
from benchmarks.roofline import Work
from showo_ext import OmniMask, codebook_lookup, omni_attention, reference, rope_qkv, rotary_tables, sample_tokens
from showo_ext.testing import randint, randn

CALLS = 50  # short enough to be seldom interrupted on a busy machine
LENGTH, HEADS, DIM = 8, 2, 32


def host_cases(
    name: str, functions: dict[str, Callable[[], object]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Iterator[Case]:
    """CALLS calls forward, and where something is differentiated also forward and backward."""

    def forward(function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(CALLS):
                function()

        return call

    def gradient(function: Callable[[], object]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), inputs, cotangents)  # type: ignore[arg-type]

    work = Work(0.0, 0.0, torch.float32)
    yield Case("host", f"{name} forward", {n: forward(f) for n, f in functions.items()}, lambda i: (), work)
    if inputs:
        both = {n: forward(gradient(f)) for n, f in functions.items()}
        yield Case("host", f"{name} fwd+bwd", both, lambda i: (), work)


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    ids, codebook = randint(0, 16, (4,), device=device), randn(16, 8, device=device).requires_grad_()
    lookups = {OURS: lambda: codebook_lookup(ids, codebook), "F.embedding": lambda: embedding(ids, codebook)}
    yield from host_cases("codebook_lookup", lookups, [codebook], [randn(4, 8, seed=1, device=device)])

    q, k, v = (randn(1, HEADS, LENGTH, DIM, seed=i, device=device).requires_grad_() for i in range(3))
    mask = OmniMask.causal(1, LENGTH).to(device)
    dense = mask.to_dense()[:, None]
    attentions: dict[str, Callable[[], object]] = {
        OURS: lambda: omni_attention(q, k, v, mask),
        "sdpa, dense bool mask": lambda: scaled_dot_product_attention(q, k, v, dense),
    }
    yield from host_cases("omni_attention", attentions, [q, k, v], [randn(1, HEADS, LENGTH, DIM, device=device)])

    parts = tuple(randn(1, LENGTH, HEADS * DIM, seed=i, device=device).requires_grad_() for i in range(3))
    tables = rotary_tables(torch.arange(LENGTH, device=device), DIM // 2)
    names = ("q_weight", "q_bias", "k_weight", "k_bias")
    norm = {n: randn(DIM, seed=i, device=device).requires_grad_() for i, n in enumerate(names)}
    ropes: dict[str, Callable[[], object]] = {
        OURS: lambda: rope_qkv(parts, tables, num_heads=HEADS, **norm),
        "plain torch": lambda: reference.rope_qkv(parts, tables, num_heads=HEADS, **norm),
    }
    gradients = [randn(1, HEADS, LENGTH, DIM, seed=i, device=device) for i in range(3)]
    yield from host_cases("rope_qkv", ropes, [*parts, *norm.values()], gradients)

    logits = randn(1, 4, 16, device=device)
    noise = randn(1, 4, 16, seed=1, device=device)
    samplers: dict[str, Callable[[], object]] = {
        OURS: lambda: sample_tokens(logits, seed=1),
        "log_softmax, argmax": lambda: (torch.log_softmax(logits, -1), (logits + noise).argmax(-1)),
    }
    yield from host_cases("sample_tokens", samplers, [], [])


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
