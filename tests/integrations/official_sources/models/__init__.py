"""Stands in for `models` of the published sources (showlab/Show-o): the same names, arguments and formulas, tiny code.

Written from the description of models/phi.py and models/modeling_showo.py: what `official.patch` meets there, eager.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig


class PhiRotaryEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        frequencies = 10000.0 ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        angles = torch.arange(seq_len)[:, None] * torch.cat([frequencies, frequencies])
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class PhiAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        hidden, self.num_heads = config.hidden_size, config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads or self.num_heads
        self.head_dim, self.attention_dropout = hidden // self.num_heads, config.attention_dropout
        self.q_proj, self.dense = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.k_proj, self.v_proj = (nn.Linear(hidden, self.num_key_value_heads * self.head_dim) for _ in range(2))
        self.qk_layernorm = config.qk_layernorm
        if self.qk_layernorm:
            self.q_layernorm, self.k_layernorm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.rotary_emb = PhiRotaryEmbedding(self.head_dim // 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
    ) -> tuple[Tensor, Tensor | None, Any]:
        length = hidden_states.size(1)
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_layernorm:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        cos, sin = (table[position_ids].unsqueeze(1) for table in self.rotary_emb(v, seq_len=length))
        q, k = (torch.cat([turn(x[..., : cos.size(-1)], cos, sin), x[..., cos.size(-1) :]], -1) for x in (q, k))
        k, v = (x.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for x in (k, v))
        scores = q @ k.mT / math.sqrt(self.head_dim)
        if attention_mask is not None:
            scores = scores + attention_mask
        elif self.config._attn_implementation != "eager":  # PhiSdpaAttention; PhiAttention sees everything then
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        weights = scores.softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        return self.dense(out), weights if output_attentions else None, past_key_value


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class PhiMLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class PhiDecoderLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = PhiAttention(config), PhiMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        normed = self.input_layernorm(x)
        attention, _, _ = self.self_attn(hidden_states=normed, past_key_value=None, **arguments)
        return attention + self.mlp(normed) + x


class PhiModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PhiDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)


class PhiForCausalLM(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        config.qk_layernorm, config.use_cache = True, False
        self.config, self.model = config, PhiModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        arguments = {
            "attention_mask": attention_mask,
            "position_ids": torch.arange(x.size(1)).unsqueeze(0),
            "output_attentions": False,
            "use_cache": False,
        }
        for layer in self.model.layers:
            x = layer(x, **arguments)
        return {"logits": self.lm_head(self.model.final_layernorm(x))}


class Showo(nn.Module):
    def __init__(
        self, w_clip_vit: bool, vocab_size: int, llm_vocab_size: int, llm_model_path: str = "", **others: Any
    ) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(llm_model_path)
        config.vocab_size = vocab_size
        config._attn_implementation = "sdpa"
        self.config = SimpleNamespace(w_clip_vit=w_clip_vit, mask_token_id=vocab_size - 1)
        self.showo = PhiForCausalLM(config)

    def forward(
        self,
        input_ids: Tensor | None,
        input_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        return self.showo(input_ids, attention_mask, input_embeddings)["logits"]

    @torch.no_grad()
    def mmu_generate(
        self, idx: Tensor, attention_mask: Tensor, max_new_tokens: int = 100, top_k: int | None = None
    ) -> list[Tensor]:
        """Greedy, as top_k = 1 is; the mask grows by a row and a column in every step and loses its batch."""
        found = []
        for _ in range(max_new_tokens):
            logits = self(idx, attention_mask=attention_mask)
            mask = attention_mask.squeeze()
            hidden = torch.full((len(mask), 1), torch.finfo(logits.dtype).min)
            last = torch.cat([mask[-1:], torch.zeros(1, 1)], 1)
            attention_mask = torch.cat([torch.cat([mask, hidden], 1), last])
            found.append(logits[0, -1].argmax())
            idx = torch.cat([idx, found[-1].view(1, 1)], 1)
        return found
