"""omni_attention against SDPA with a dense mask, the eager formula, FlexAttention and flash-attn.

    python -m benchmarks.bench_omni_attention [--rounds 15] [--threads 2] [--device cpu] [--csv]

Show-o's sequences: a prompt padded on the left, causal, and a picture of 256 or 1,024 tokens that sees all but the
padding. "gemm" multiplies as many matrices as the allowed pairs need: the time that the allowed work alone would take.
FlexAttention's block mask and our block table are built before the clock starts; building them is timed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.peers import flash_attn_dense, flash_attn_two_calls, flex_attention_under, flex_block_mask
from benchmarks.roofline import Work
from showo_ext import OmniMask, omni_attention
from showo_ext.testing import randn

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def gradients(attention: Attention | str) -> Callable[..., object] | str:
    if isinstance(attention, str):
        return attention
    return lambda q, k, v, dout: torch.autograd.grad(attention(q, k, v), (q, k, v), dout)


def attention_cases(
    name: str, mask: OmniMask, heads: int, dim: int, dtype: torch.dtype, peers: dict[str, Attention | str]
) -> Iterator[Case]:
    """Forward, and forward with backward, of one mask."""
    batch, device = mask.batch_size, mask.device
    dense = mask.to_dense().unsqueeze(1)
    additive = torch.zeros(dense.shape, dtype=dtype, device=device).masked_fill(~dense, float("-inf"))

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) * dim**-0.5 + additive, -1) @ v

    attentions: dict[str, Attention | str] = {
        OURS: lambda q, k, v: omni_attention(q, k, v, mask),
        "sdpa, dense bool mask": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=dense),
        "eager softmax(qk + mask) v": eager,
        **peers,
    }

    def inputs(i: int, grad: bool = False, interleaved: bool = False) -> tuple[Tensor, ...]:
        def draw(seed: int) -> Tensor:
            if interleaved:  # [B, S, H, D] in memory, as projections leave it
                x = randn(batch, mask.kv_length, heads, dim, dtype=dtype, seed=seed, device=device).transpose(1, 2)
            else:
                x = randn(batch, heads, mask.kv_length, dim, dtype=dtype, seed=seed, device=device)
            return x.requires_grad_(grad)

        q, k, v = (draw(4 * i + j) for j in range(3))
        q = q.detach()[:, :, -mask.q_length :].requires_grad_(grad)
        return q, k, v

    def inputs_and_gradient(i: int, interleaved: bool = False) -> tuple[Tensor, ...]:
        q, k, v = inputs(i, True, interleaved)
        return q, k, v, randn(*q.shape, dtype=dtype, seed=4 * i + 3, device=device)

    pairs = float(mask.columns_per_row().sum()) * heads
    q, k, v = inputs(0)
    forward = Work(4 * dim * pairs, nbytes(q, k, v, q), dtype)
    both = Work(14 * dim * pairs, forward.bytes + nbytes(q, q, q, k, v, q, k, v), dtype)
    case = f"{name} H{heads} D{dim} {str(dtype)[6:]}"

    side = round((2 * pairs * dim) ** (1 / 3))  # two products of pairs x dim multiply-adds
    a = randn(side, side, dtype=dtype, device=device)
    more: dict[str, Callable[..., object] | str] = {"gemm of the allowed work": lambda *_: a @ a}
    yield Case("omni_attention", f"{case} forward", {**attentions, **more}, inputs, forward)
    yield Case(
        "omni_attention",
        f"{case} forward, [B, S, H, D]",
        {n: attentions[n] for n in (OURS, "sdpa, dense bool mask")},
        lambda i: inputs(i, interleaved=True),
        forward,
    )
    if mask.q_length == mask.kv_length:
        trained = {n: gradients(f) for n, f in attentions.items()}
        yield Case("omni_attention", f"{case} fwd+bwd", trained, inputs_and_gradient, both)


def table_case(name: str, mask: OmniMask) -> Case:
    """What a new mask costs before its first attention."""

    def table(intervals: Tensor) -> object:
        return torch.ops.showo_ext.omni_block_table(intervals, mask.kv_length)

    return Case(
        "omni_attention",
        f"{name} mask",
        {OURS: table, "FlexAttention block mask": flex_block_mask(mask)},
        lambda i: (mask.intervals.clone(),),
        Work(0.0, nbytes(mask.intervals), torch.float32),
    )


def t2i(paddings: list[int], image: int, device: torch.device) -> OmniMask:
    return OmniMask.t2i_padded(paddings, image_length=image + 2).to(device)


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    dtype, heads = (torch.bfloat16 if a100 else torch.float32), 32
    paddings = {256: [90, 120] * (8 if a100 else 1), 1024: [100, 115, 60, 120]}
    for image in (256, 1024) if a100 else (256,):
        mask = t2i(paddings[image], image, device)
        name = f"t2i B{mask.batch_size} S{mask.kv_length}"
        peers: dict[str, Any] = {
            "FlexAttention": flex_attention_under(mask),
            "flash-attn, two calls": flash_attn_two_calls(mask, paddings[image], image + 2),
        }
        yield from attention_cases(name, mask, heads, 64, dtype, peers)
        if a100:
            yield table_case(name, mask)
    if not a100:
        return
    full = OmniMask.full(4, 1024, device=device)
    peers = {"sdpa, no mask": scaled_dot_product_attention, "flash-attn": flash_attn_dense()}
    yield from attention_cases("dense B4 S1024", full, heads, 64, dtype, peers)
    for length in (387, 4096):
        mask = OmniMask.full(8, 1, kv_length=length, device=device)
        peers = {"sdpa, no mask": scaled_dot_product_attention}
        yield from attention_cases(f"decode B8 S1 of {length}", mask, heads, 64, dtype, peers)


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
