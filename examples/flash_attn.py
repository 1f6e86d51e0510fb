"""A decoder layer of somebody's own that calls flash-attn, on our functions instead: the import is all that changes.

    python examples/flash_attn.py

A batch of three texts of different lengths goes through the layer twice: packed one after the other without padding,
and token by token against a KV cache. Both ways give what each text gives by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from showo_ext import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

HEADS, KV_HEADS, DIM, LENGTHS = 8, 2, 64, (5, 12, 9)


class Attention(nn.Module):
    """Grouped queries, a sliding window of eight tokens, capped scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(HEADS * DIM, HEADS * DIM)
        self.kv = nn.Linear(HEADS * DIM, 2 * KV_HEADS * DIM)
        self.options = {"causal": True, "window_size": (7, 0), "softcap": 30.0}

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.kv(x).unflatten(-1, (2, KV_HEADS, DIM)).unbind(-3)
        return self.q(x).unflatten(-1, (HEADS, DIM)), k, v


def main() -> None:
    torch.manual_seed(0)
    layer = Attention()
    texts = [torch.randn(length, HEADS * DIM) for length in LENGTHS]
    with torch.no_grad():
        alone = [flash_attn_func(*(x[None] for x in layer.project(text)), **layer.options)[0] for text in texts]

        ends = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        packed = flash_attn_varlen_func(*layer.project(torch.cat(texts)), ends, ends, **layer.options)
        print(f"packed: largest difference {(packed - torch.cat(alone)).abs().max():.1e}")

        k_cache, v_cache = torch.empty(2, len(texts), max(LENGTHS), KV_HEADS, DIM).unbind()
        difference = 0.0
        for step in range(max(LENGTHS)):
            token = torch.stack([text[min(step, len(text) - 1)] for text in texts])[:, None]
            q, k, v = layer.project(token)
            out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=step, **layer.options)
            going_on = [n for n, length in enumerate(LENGTHS) if step < length]
            difference = max(difference, *(float((out[n, 0] - alone[n][step]).abs().max()) for n in going_on))
        print(f"token by token: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
