"""omni_attention against torch's SDPA with a dense mask and the eager formula, on Show-o's t2i batch.

    python -m benchmarks.bench_omni_attention [--rounds 15] [--threads 2] [--dtype float32] [--csv]

B2 H32 S387 D64, 90 and 120 left pads: 53% of the pairs are allowed. "gemm" multiplies as many matrices as the allowed
pairs need (two products forward), by torch.mm: the time that the allowed work alone would take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Row, measure, report, write_csv
from showo_ext import OmniMask, omni_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_gradients(attention: Attention, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(attention(*leaves), leaves, dout)


def run(dtype: torch.dtype, rounds: int) -> list[Row]:
    batch, heads, length, dim = 2, 32, 387, 64
    mask = OmniMask.t2i_padded([90, 120])
    dense = mask.to_dense().unsqueeze(1)
    additive = torch.zeros(dense.shape, dtype=dtype).masked_fill(~dense, float("-inf"))
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:  # [B, S, H, D] in memory, as projections leave it
        x = torch.randn(batch, length, heads, dim, generator=generator)
        return x.to(dtype).transpose(1, 2)

    strided = (draw(), draw(), draw())
    packed = (strided[0].contiguous(), strided[1].contiguous(), strided[2].contiguous())
    dout = draw().contiguous()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return omni_attention(q, k, v, mask)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=dense)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) * dim**-0.5 + additive, -1) @ v

    pairs = int(mask.columns_per_row().sum()) * heads
    side = round((2 * pairs * dim) ** (1 / 3))  # two products of pairs x dim multiply-adds
    a = torch.randn(side, side, generator=generator).to(dtype)

    case = f"B{batch} H{heads} S{length} D{dim} {str(dtype)[6:]}"
    rows = measure(
        "omni_attention",
        f"{case} forward",
        {
            "showo_ext": lambda: ours(*packed),
            "showo_ext, [B, S, H, D] memory": lambda: ours(*strided),
            "sdpa, dense bool mask": lambda: sdpa(*packed),
            "eager softmax(qk + mask) v": lambda: eager(*packed),
            "gemm of the allowed work": lambda: a @ a,
        },
        baseline="showo_ext",
        rounds=rounds,
    )
    rows += measure(
        "omni_attention",
        f"{case} forward+backward",
        {
            "showo_ext": with_gradients(ours, *packed, dout),
            "showo_ext, [B, S, H, D] memory": with_gradients(ours, *strided, dout),
            "sdpa, dense bool mask": with_gradients(sdpa, *packed, dout),
            "eager softmax(qk + mask) v": with_gradients(eager, *packed, dout),
        },
        baseline="showo_ext",
        rounds=rounds,
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--csv", action="store_true", help="append the rows to benchmarks/results/omni_attention.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = run(getattr(torch, arguments.dtype), arguments.rounds)
    report(rows)
    if arguments.csv:
        print(write_csv(rows))


if __name__ == "__main__":
    main()
