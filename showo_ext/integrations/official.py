"""The published Show-o model object (showlab/Show-o) on our operators: `patch(model)`, and nothing else changes.

    from models import Showo                       # the published sources
    model = Showo.from_pretrained("showlab/show-o-256")
    official.patch(model)

Its attention layers (models/phi.py: PhiAttention and PhiSdpaAttention) project q, k and v, normalise and turn them and
take a softmax over dense scores. After `patch`, `rope_qkv` does what lies between the projections and the scores, and
`omni_attention` the rest. Weights, arguments and results stay what they are; so do the dense additive masks
[B, 1, S, S] that the published code makes, which are read once in a forward pass, whatever the number of layers.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from showo_ext.integrations._mask_tensors import mask_of, plain_mask
from showo_ext.ops import omni_attention, rope_qkv

# What an attention layer of models/phi.py has, and what the forward pass below needs.
PARTS = ("q_proj", "k_proj", "v_proj", "dense", "rotary_emb")
NUMBERS = ("config", "num_heads", "num_key_value_heads", "qk_layernorm", "attention_dropout")


def patch(model: nn.Module) -> int:
    """Puts the attention layers of a model of the published code on our operators, in place; returns their number.

    Parameters, buffers, state dict and classes stay as they are: only `forward` of these layers becomes another, and
    `del layer.forward` brings the old one back. Once more changes nothing.

    Rows of a mask that see no column give zeros, where the published code gives the average of all columns. Its masks
    have no such rows.

    ValueError if the model has no attention layer as in models/phi.py.
    """
    layers = [module for module in model.modules() if all(hasattr(module, name) for name in (*PARTS, *NUMBERS))]
    if not layers:
        raise ValueError(
            f"model is {type(model).__name__}, expected one with attention layers as in models/phi.py of "
            f"showlab/Show-o: modules with {', '.join((*PARTS, *NUMBERS))}"
        )
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_value: Any = None,
    output_attentions: bool = False,
    use_cache: bool = False,
) -> tuple[Tensor, None, None]:
    """PhiAttention.forward of the published code.

    Args:
        hidden_states: [B, S, hidden]. position_ids: int64 [B or 1, S], default 0 to S - 1.
        attention_mask: dense, as `mask_of` takes it; None: causal, but full in the eager layer, as published.

    NotImplementedError for dropout in training, a cache and weights of attention, which the published code never uses.
    """
    if layer.training and layer.attention_dropout:
        raise NotImplementedError(
            f"attention_dropout is {layer.attention_dropout}; omni_attention has none: set it to 0, or model.eval()"
        )
    if past_key_value is not None or use_cache:
        raise NotImplementedError("past_key_value or use_cache is set; a patched model takes no cache")
    if output_attentions:
        raise NotImplementedError("output_attentions is set; omni_attention never writes the weights of attention out")
    length = hidden_states.size(1)
    projections = (layer.q_proj(hidden_states), layer.k_proj(hidden_states), layer.v_proj(hidden_states))
    cos, sin = layer.rotary_emb(projections[2], seq_len=length)  # [S, rotary dims], both halves the same
    if position_ids is None:
        position_ids = torch.arange(length, dtype=torch.int64, device=hidden_states.device)[None]
    tables = tuple(table[position_ids][..., : table.size(-1) // 2].float() for table in (cos, sin))
    q, k, v = rope_qkv(
        projections,
        (tables[0], tables[1]),
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_key_value_heads,
        **_norm(layer),
    )
    if attention_mask is None:
        mask = plain_mask(layer.config._attn_implementation != "eager", length, length, q.device)
    else:
        mask = mask_of(attention_mask, length, length)
    out = omni_attention(q, k, v, mask)
    return layer.dense(out.transpose(1, 2).flatten(2)), None, None


def _norm(layer: Any) -> dict[str, Any]:
    """The QK-norm's arguments of `rope_qkv`."""
    if not layer.qk_layernorm:
        return {}
    q, k = layer.q_layernorm, layer.k_layernorm
    return {"q_weight": q.weight, "q_bias": q.bias, "k_weight": k.weight, "k_bias": k.bias, "eps": q.eps}
