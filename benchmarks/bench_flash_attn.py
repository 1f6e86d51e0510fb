"""flash-attn's functions as showo_ext has them against SDPA, and against flash-attn where it is installed.

    python -m benchmarks.bench_flash_attn [--rounds 15] [--threads 2] [--device cpu] [--csv]

Inputs are [B, S, H, D] as flash-attn takes them; SDPA gets transposed views. A causal batch; the same with a window,
for which SDPA needs a dense mask; and texts of different lengths one after the other, which SDPA gets padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import OURS, Case, arguments, nbytes, run
from benchmarks.peers import flash_attn_module
from benchmarks.roofline import Work
from showo_ext import OmniMask, flash_attn_func, flash_attn_varlen_func
from showo_ext.testing import randn

Attention = Callable[[Tensor, Tensor, Tensor], Any]


def sdpa(mask: Tensor | None = None, *, causal: bool = False) -> Attention:
    """Of [B, S, H, D]; grouped heads as it is told of them."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        views = (x.transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(*views, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2)

    return attention


def theirs(name: str, *arguments: Any, **options: Any) -> Attention | str:
    module = flash_attn_module()
    return module if isinstance(module, str) else lambda q, k, v: getattr(module, name)(q, k, v, *arguments, **options)


def cases(device: torch.device, a100: bool) -> Iterator[Case]:
    dtype = torch.bfloat16 if a100 else torch.float32
    batch, length, heads, kv_heads, dim = (8, 2048, 32, 8, 64) if a100 else (2, 512, 8, 2, 64)
    window, lengths = length // 4 - 1, [length // 4, length // 2, length, length // 8]

    def inputs(i: int, *places: int) -> tuple[Tensor, ...]:
        sizes = enumerate((heads, kv_heads, kv_heads))
        return tuple(randn(*places, n, dim, dtype=dtype, seed=3 * i + j, device=device) for j, n in sizes)

    def work(mask: OmniMask) -> Work:
        pairs = float(mask.columns_per_row().sum()) * heads
        sizes = nbytes(*inputs(0, mask.batch_size, mask.q_length)) * (1 + heads / (heads + 2 * kv_heads))
        return Work(4 * dim * pairs, sizes, dtype)

    causal = OmniMask.causal(batch, length, device=device)
    yield Case(
        "flash_attn",
        f"causal B{batch} S{length} H{heads}/{kv_heads} D{dim}",
        {
            OURS: lambda q, k, v: flash_attn_func(q, k, v, causal=True),
            "sdpa, is_causal": sdpa(causal=True),
            "flash-attn": theirs("flash_attn_func", causal=True),
        },
        lambda i: inputs(i, batch, length),
        work(causal),
    )
    near = OmniMask.sliding_window(batch, length, window, device=device)
    yield Case(
        "flash_attn",
        f"causal, window {window + 1}, B{batch} S{length} H{heads}/{kv_heads} D{dim}",
        {
            OURS: lambda q, k, v: flash_attn_func(q, k, v, causal=True, window_size=(window, 0)),
            "sdpa, dense bool mask": sdpa(near.to_dense()[:, None]),
            "flash-attn": theirs("flash_attn_func", causal=True, window_size=(window, 0)),
        },
        lambda i: inputs(i, batch, length),
        work(near),
    )
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    packed = OmniMask.from_cu_seqlens(ends, sum(lengths))
    rows = torch.cat([torch.arange(n, device=device) + number * length for number, n in enumerate(lengths)])

    def padded(*packed: Tensor) -> Tensor:
        whole = []
        for x in packed:
            spread = x.new_zeros(len(lengths) * length, *x.shape[1:])
            spread[rows] = x
            whole.append(spread.unflatten(0, (len(lengths), length)))
        return sdpa(causal=True)(*whole).flatten(0, 1)[rows]

    yield Case(
        "flash_attn",
        f"varlen, causal, {'+'.join(map(str, lengths))} H{heads}/{kv_heads} D{dim}",
        {
            OURS: lambda q, k, v: flash_attn_varlen_func(q, k, v, ends, ends, causal=True),
            "sdpa, padded": padded,
            "flash-attn": theirs("flash_attn_varlen_func", ends, ends, max(lengths), max(lengths), causal=True),
        },
        lambda i: inputs(i, sum(lengths)),
        work(packed),
    )


if __name__ == "__main__":
    run(cases, arguments(__doc__).parse_args())
