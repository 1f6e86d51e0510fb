"""Other implementations of attention under Show-o's masks. Each is a function of (q, k, v), [B, H, S, D] as in SDPA, or
a string that says why it cannot run here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from showo_ext import OmniMask

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _mask_mod(mask: OmniMask) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    start, stop = (mask.intervals[..., i].contiguous() for i in (0, 1))  # [B, S_q, K]

    def allowed(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        inside = (start[b, row, 0] <= column) & (column < stop[b, row, 0])
        for i in range(1, start.shape[-1]):
            inside |= (start[b, row, i] <= column) & (column < stop[b, row, i])
        return inside

    return allowed


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def flex_attention_under(mask: OmniMask) -> Attention | str:
    """FlexAttention, compiled, with the block mask built beforehand."""
    if mask.device.type != "cuda":
        return "only measured on a GPU, where it trains"
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    block_mask = create_block_mask(
        _mask_mod(mask), mask.batch_size, None, mask.q_length, mask.kv_length, device=mask.device.type
    )
    compiled = _compiled(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def flex_block_mask(mask: OmniMask) -> Callable[..., object] | str:
    """FlexAttention's block mask alone, compiled, from the same intervals."""
    if mask.device.type != "cuda":
        return "only measured on a GPU"
    from torch.nn.attention.flex_attention import create_block_mask

    build = _compiled(create_block_mask)

    def table(intervals: Tensor) -> object:
        fresh = OmniMask(intervals, mask.kv_length)
        sizes = (mask.batch_size, None, mask.q_length, mask.kv_length)
        return build(_mask_mod(fresh), *sizes, device=mask.device.type)

    return table


def flash_attn_module() -> Any | str:
    """The package, or why there is none."""
    try:
        import flash_attn  # type: ignore[import-not-found]
    except ImportError:
        return "flash-attn is not installed"
    return flash_attn


def flash_attn_dense() -> Attention | str:
    """flash_attn_func without a mask. It wants [B, S, H, D], which a transposed view of contiguous memory gives it."""
    module = flash_attn_module()
    if isinstance(module, str):
        return module

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return module.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return attention


def flash_attn_two_calls(mask: OmniMask, paddings: list[int], image_rows: int) -> Attention | str:
    """A text-to-image batch as flash-attn can do it: the text rows causal, then the image rows over all columns that
    are not padding, both with variable lengths. Gathering the rows is part of the time, as it is for its users.
    """
    module = flash_attn_module()
    if isinstance(module, str):
        return module
    device, length = mask.device, mask.kv_length
    text = length - image_rows
    rows = torch.arange(length, device=device)
    pads = torch.tensor(paddings, device=device)[:, None]
    is_text, is_image = (rows >= pads) & (rows < text), (rows >= text).expand(len(paddings), -1)
    real = rows >= pads

    def ends(lengths: Tensor) -> Tensor:
        return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()

    text_ends, image_ends, all_ends = (ends(m.sum(1)) for m in (is_text, is_image, real))
    most_text, most = text - min(paddings), length - min(paddings)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.zeros_like(q)
        out[is_text] = module.flash_attn_varlen_func(
            q[is_text], k[is_text], v[is_text], text_ends, text_ends, most_text, most_text, causal=True
        )
        out[is_image] = module.flash_attn_varlen_func(
            q[is_image], k[real], v[real], image_ends, all_ends, image_rows, most
        )
        return out.transpose(1, 2)

    return attention
