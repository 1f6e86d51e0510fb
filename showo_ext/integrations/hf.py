"""transformers on omni_attention: `register()` once, then `attn_implementation="omni"`.

    from showo_ext.integrations import hf
    hf.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="omni")

transformers asks two registries by the name of the implementation: one for the function that makes a mask, once per
forward pass and kind of layer, and one for the attention function of the layers. Ours makes column intervals, int32
[B or 1, S_q, K, 2], where others make a dense [B, 1, S_q, S_kv], and hands these through the model's layers unchanged.
A 4-D mask that a caller gives goes to the layers as it is; `_mask_tensors.mask_of` reads both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    causal_mask_function,
    sdpa_mask,
)

from showo_ext.integrations import _mask_functions
from showo_ext.integrations._mask_tensors import intervals_of, mask_of, padding_intervals, plain_mask
from showo_ext.mask import OmniMask
from showo_ext.ops import omni_attention

NAME = "omni"

# Arguments of transformers' attention functions that change the result in ways which omni_attention does not know.
UNKNOWN = ("position_bias", "s_aux", "head_mask", "output_attentions")


def register(name: str = NAME) -> None:
    """Makes `attn_implementation=name` known to transformers: attention and its masks. More calls change nothing.

    RuntimeError if this version of transformers means something else by its own mask functions than we know.
    """
    _mask_functions.check_known()
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, make_mask)


# ---- masks ----------------------------------------------------------------------------------------------------------


def make_mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    cache_position: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """The function of transformers' AttentionMaskInterface: column intervals, int32 [B or 1, S_q, K, 2].

    Args:
        batch_size: B.
        kv_length, kv_offset: number of the keys that attention will see, and the place of the first.
        mask_function: (sample, head, place of a query, place of a key) -> whether the query sees the key.
        attention_mask: bool [B, places], which keys are no padding; a place that it does not reach is padding.
        q_length, q_offset: number of the queries and the place of the first (transformers 5).
        cache_position: the places of the queries, int64 [S_q] (transformers 4 and 5.0).
        others: for transformers' own function, which evaluates mask functions that we do not know, pair by pair.

    ValueError if a row sees more than 8 intervals of columns.
    """
    if q_length is None:
        assert cache_position is not None
        rows = cache_position
    else:
        rows = _places(q_offset, q_length, device)
    bounds = _mask_functions.bounds(mask_function, rows)
    if bounds is None:
        places = {"cache_position": rows} if q_length is None else {"q_length": q_length, "q_offset": q_offset}
        whole = {**others, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        dense = sdpa_mask(
            batch_size=batch_size,
            kv_length=kv_length,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            device=rows.device,
            **places,
            **whole,
        )
        return intervals_of(dense)
    edges = torch.stack(bounds)
    if isinstance(kv_offset, Tensor) or kv_offset:
        edges = edges - kv_offset
    start, stop = edges.clamp(0, kv_length).to(torch.int32)[..., None].unbind(0)
    if attention_mask is not None:
        shown = _shown(attention_mask, kv_length, kv_offset)
        first, last = padding_intervals(shown).unbind(-1)  # [B, 1, K]
        start = torch.maximum(start, first)
        stop = torch.maximum(torch.minimum(stop, last), start)
    return torch.stack([start, stop], -1)


def _places(first: int | Tensor, count: int, device: torch.device | str) -> Tensor:
    """int64 [count], counting up from the first."""
    if isinstance(first, Tensor):
        return torch.arange(count, dtype=torch.int64, device=device) + first
    return torch.arange(first, first + count, dtype=torch.int64, device=device)


def _shown(attention_mask: Tensor, kv_length: int, kv_offset: int | Tensor) -> Tensor:
    """bool [B, kv_length], which of these columns are no padding."""
    length = attention_mask.size(1)
    if not isinstance(kv_offset, Tensor):
        part = attention_mask[:, kv_offset : kv_offset + kv_length]
        missing = kv_length - part.size(1)
        return torch.nn.functional.pad(part, (0, missing)) if missing else part
    columns = _places(kv_offset, kv_length, attention_mask.device)
    return attention_mask[:, columns.clamp(max=length - 1)] & (columns < length)


# ---- attention ------------------------------------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function of transformers' AttentionInterface: omni_attention.

    Args:
        module: the attention layer; asked for its registry name and whether it is causal where there is no mask.
        query: [B, H, S_q, D]; key, value: [B, H_kv, S_kv, D].
        attention_mask: what `make_mask` has made, or a dense one, as `mask_of` takes it; None: causal or
            full, as the layer is.
        dropout: 0. scaling: of the scores, default 1 / sqrt(D).
        sliding_window: known to the mask already.
        softcap: bounds the scores; see `omni_attention`.

    Returns:
        [B, S_q, H, D], contiguous, and None for the weights of attention, which are never written out.

    Raises:
        NotImplementedError: dropout, or an argument that changes the result (`UNKNOWN`) is set.
        RuntimeError: there is no mask where one is needed.
        TypeError, ValueError: see `mask_of` and `omni_attention`.
    """
    if dropout:
        raise NotImplementedError(
            f"dropout is {dropout}; omni_attention has none: set attention_dropout=0 in the config, or model.eval()"
        )
    for name in UNKNOWN:
        if others.get(name) is not None and others[name] is not False:
            raise NotImplementedError(f'{name} is set; omni_attention has no {name}: use attn_implementation="eager"')
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        mask = _plain_mask(module, query, key.size(2), causal, sliding_window)
    else:
        mask = mask_of(attention_mask, query.size(2), key.size(2))
    out = omni_attention(query, key, value, mask, scale=scaling, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None


def _plain_mask(module: nn.Module, query: Tensor, kv_length: int, causal: bool, sliding_window: int | None) -> OmniMask:
    """The mask of a layer that was given none: causal or full, as the layer is.

    `make_mask` always makes a mask. Without it in the registry transformers drops padding, packing and windows without
    a word, and what remains looks like a layer that needs no mask; so this is refused, whatever the layer is.
    """
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is not None and ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.get(name) is not make_mask:
        raise RuntimeError(
            f"attention_mask is None, and transformers' AttentionMaskInterface has none of our functions for {name}: "
            "padding would be ignored. showo_ext.integrations.hf.register() registers attention and masks together"
        )
    q_length = query.size(2)
    windowed = sliding_window is not None and kv_length > sliding_window
    if causal and (q_length != kv_length or windowed):
        raise RuntimeError(
            f"attention_mask is None for {q_length} queries and {kv_length} keys of a causal layer"
            f"{' with a window' if windowed else ''}; what they see is not known without a mask"
        )
    return plain_mask(causal, q_length, kv_length, query.device)
