"""The Show-o transformer: a Phi decoder over text ids, task marks and image codes, with omni-attention.

One block is  x + attention(ln(x)) + mlp(ln(x))  with a single LayerNorm, QK-LayerNorm, partial rotary positions
(half-split layout), tanh-GELU, biases everywhere, a final LayerNorm and an untied head. Module and parameter names
are those of the released checkpoints, so their state dicts load as they are. There are no buffers: rotary tables are
computed from explicit positions once per call and shared by all layers, which is also what allows packed rows, cached
prefixes and padded batches to give the same numbers.

Shapes: B batch, S rows of this call, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showo.batch import FeatureSpans
from showo.config import ShowoConfig
from showo.model.kv_cache import KVCache
from showo.model.linear import Embedding, Linear
from showo.model.weights import PretrainedMixin
from showo_ext import OmniMask, omni_attention, rope_qkv, rope_qkv_into_cache, rotary_tables

if TYPE_CHECKING:
    from showo.model.graphs import Forward, Graphs

AttentionFunction = Callable[[Tensor, Tensor, Tensor, OmniMask], Tensor]
Rows = slice | Tensor | None  # the same rows of every sample, own rows of each (int64 [B, R]), or all


class Attention(nn.Module):
    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.q_proj = Linear(hidden, hidden)
        self.k_proj = Linear(hidden, hidden)
        self.v_proj = Linear(hidden, hidden)
        self.dense = Linear(hidden, hidden)
        self.q_layernorm: nn.Module = nn.Identity()
        self.k_layernorm: nn.Module = nn.Identity()
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, eps=eps)
            self.k_layernorm = nn.LayerNorm(self.head_dim, eps=eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: OmniMask,
        attend: AttentionFunction,
        cache: KVCache | None,
        slots: int | Tensor,
        row_slots: Tensor | None,
        layer: int,
        rows: Rows,
    ) -> Tensor:
        projection = (self.q_proj(select(x, rows)), self.k_proj(x), self.v_proj(x))
        fused = projection[0].dtype != torch.float64  # what rope_qkv takes
        if cache is None or row_slots is None:
            q, k, v = (self.fused_heads if fused else self.split_heads)(projection, rotary, rows)
        else:
            into = (cache.keys[layer], cache.values[layer])
            if fused and into[0].dtype == projection[0].dtype and not torch.is_grad_enabled():
                q, _, _ = self.fused_heads(projection, rotary, rows, (into, row_slots))
            else:
                q, k, v = (self.fused_heads if fused else self.split_heads)(projection, rotary, rows)
                cache.write(layer, k, v, slots)
            k, v = (x[:, :, : mask.kv_length] for x in into)
        out = attend(q, k, v, mask)
        return self.dense(out.transpose(1, 2).flatten(2))

    def norm(self) -> dict[str, Any]:
        """Arguments of `rope_qkv`."""
        q, k = self.q_layernorm, self.k_layernorm
        if isinstance(q, nn.Identity):
            return {}
        return {"q_weight": q.weight, "q_bias": q.bias, "k_weight": k.weight, "k_bias": k.bias, "eps": q.eps}

    def fused_heads(
        self,
        projection: tuple[Tensor, Tensor, Tensor],
        rotary: tuple[Tensor, Tensor],
        rows: Rows,
        cache: tuple[tuple[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`split_heads` by the fused operators; k and v go to the slots of a cache (buffers, slots) if one is given."""
        q_in, k_in, v_in = projection
        arguments = {"num_heads": self.num_heads, "num_kv_heads": self.num_heads, **self.norm()}
        own_q = None
        if rows is not None:  # q has rows of its own, so it goes alone, and k and v without it
            absent, (cos, sin) = q_in[..., :0], rotary
            tables = (select(cos, rows), select(sin, rows))
            own_q, _, _ = rope_qkv((q_in, absent, absent), tables, **{**arguments, "num_kv_heads": 0})
            q_in, arguments["num_heads"] = k_in[..., :0], 0
        if cache is None:
            q, k, v = rope_qkv((q_in, k_in, v_in), rotary, **arguments)
        else:
            k, v = cache[0]
            q = rope_qkv_into_cache((q_in, k_in, v_in), rotary, *cache, **arguments)
        return q if own_q is None else own_q, k, v

    def split_heads(
        self, projection: tuple[Tensor, Tensor, Tensor], rotary: tuple[Tensor, Tensor], rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, S, D], normalised and turned; q is of `rows` only."""
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in projection)
        cos, sin = rotary
        q = rotate(self.q_layernorm(q), select(cos, rows), select(sin, rows)).to(v.dtype)
        k = rotate(self.k_layernorm(k), cos, sin).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP in parallel after one LayerNorm."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, rows: Rows, **attention: Any) -> Tensor:
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, rows=rows, **attention)
        return select(x, rows) + attended + self.mlp(select(normed, rows))


class Phi(nn.Module):
    """Embedding, blocks, final LayerNorm."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class PhiForCausalLM(nn.Module):
    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.model = Phi(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)


class Showo(PretrainedMixin, nn.Module):
    """Show-o: logits over one vocabulary of text and image codes.

    attend: the attention used, `showo_ext.omni_attention` unless another function of the same signature is set
    (for example `showo_ext.reference.omni_attention`).
    compiled: functions of a step of drawing or of decoding, with what takes their place (`compiled_steps`).
    graphs: where they are given, the steps of drawing and of decoding text run as CUDA graphs.
    A copy, or what has been pickled, has neither of the two, which are of one process and of one model's memory.
    """

    config_class = ShowoConfig

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: AttentionFunction = omni_attention
        self.compiled: dict[Forward, Forward] = {}
        self.graphs: Graphs | None = None
        self.showo = PhiForCausalLM(config)
        if config.w_clip_vit:
            self.mm_projector = nn.Sequential(
                Linear(config.clip_width, config.hidden_size),
                nn.GELU(),
                Linear(config.hidden_size, config.hidden_size),
            )
        if config.initializer_range != Linear.std:
            self._rescale_init(config.initializer_range / Linear.std)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compiled": {}, "graphs": None}

    @torch.no_grad()
    def _rescale_init(self, factor: float) -> None:
        for module in self.modules():
            if isinstance(module, (Linear, Embedding)):
                module.weight.mul_(factor)

    @property
    def device(self) -> torch.device:
        return self.showo.model.final_layernorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of all weights that are not quantised."""
        return self.showo.model.final_layernorm.weight.dtype

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings [B, S, hidden] of ids [B, S]."""
        return self.showo.model.embed_tokens(input_ids)

    def project_clip(self, features: Tensor) -> Tensor:
        """CLIP-ViT features [B, P, clip_width] as embeddings [B, P, hidden]."""
        if not self.config.w_clip_vit:
            raise ValueError("project_clip: this model has no CLIP-ViT projector (config.w_clip_vit is false)")
        (first, *_) = self.mm_projector.parameters()
        return self.mm_projector(features.to(first.dtype))

    def insert_features(self, embeddings: Tensor, features: FeatureSpans) -> Tensor:
        """embeddings [B, S, hidden] with the projected features at their places."""
        values, width = features.values, self.config.clip_width
        if values.dim() != 3 or values.shape[2] != width or values.shape[:2].numel() != features.places.numel():
            raise ValueError(
                f"features: expected [n, P, {width}] with n * P = {features.places.numel()} places, as a vision tower "
                f"gives them, got {list(values.shape)}"
            )
        projected = self.project_clip(values).flatten(0, 1).to(embeddings.dtype)
        return embeddings.flatten(0, 1).index_copy(0, features.places, projected).view_as(embeddings)

    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        features: FeatureSpans | None = None,
        mask: OmniMask | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        slots: int | Tensor = 0,
        rows: Rows = None,
    ) -> Tensor:
        """Final, normalised hidden states [B, R, hidden], ready for `logits`.

        input_ids [B, S] or inputs_embeds [B, S, hidden]: exactly one of them.
        features: of pictures, which take the place of embeddings; needs a model with a CLIP-ViT projector.
        mask: who sees whom, [B, S, kv]; None is causal. kv is S, or the cache's columns in use.
        positions: rotary positions, [S] or [B, S]; None counts from 0.
        cache, slots: keys and values of these rows are written there, from one slot on or each to its own, int64
            [B, S], and attention reads columns 0..kv of it.
        rows: rows whose result is wanted, a slice or int64 [B, R]; the last layer computes queries and MLP only there.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Showo: give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            if input_ids.dim() != 2:
                raise ValueError(f"Showo: input_ids must be [B, S], got shape {list(input_ids.shape)}")
            x = self.embed(input_ids)
        else:
            if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != self.config.hidden_size:
                raise ValueError(
                    f"Showo: inputs_embeds must be [B, S, {self.config.hidden_size}], got {list(inputs_embeds.shape)}"
                )
            x = inputs_embeds
        if features is not None:
            x = self.insert_features(x, features)
        batch, length = x.shape[:2]
        if mask is None:
            if cache is not None:
                raise ValueError("Showo: a cache needs an explicit mask")
            mask = OmniMask.causal(batch, length, device=x.device)
        if positions is None:
            if cache is not None:
                raise ValueError("Showo: a cache needs explicit positions")
            positions = torch.arange(length, device=x.device)
        if positions.dim() == 1:
            positions = positions[None]
        if positions.shape[1] != length or positions.shape[0] not in (1, batch):
            raise ValueError(f"Showo: positions must be [{length}] or [{batch}, {length}], got {list(positions.shape)}")
        rotary = rotary_tables(positions, self.config.rotary_dim, theta=self.config.rope_theta)
        if torch.compiler.is_compiling():
            mask = OmniMask(mask.intervals, mask.kv_length)  # a mask made in the graph keeps its plan for all layers
        row_slots = None if cache is None else cache.row_slots(slots, length)
        last = self.config.num_layers - 1
        for index, block in enumerate(self.showo.model.layers):
            wanted = rows if index == last else None
            x = block(
                x,
                wanted,
                rotary=rotary,
                mask=select_mask(mask, wanted),
                attend=self.attend,
                cache=cache,
                slots=slots,
                row_slots=row_slots,
                layer=index,
            )
        return self.showo.model.final_layernorm(x)

    def logits(self, hidden: Tensor, vocab: tuple[int, int] | None = None) -> Tensor:
        """Logits [..., V] of final hidden states, or of ids vocab[0] .. vocab[1]-1 only."""
        if vocab is None:
            return self.showo.lm_head(hidden)
        first, end = vocab
        if not 0 <= first < end <= self.config.vocab_size:
            raise ValueError(f"Showo: vocab {vocab} is not a range of the {self.config.vocab_size} ids")
        return self.showo.lm_head(hidden, slice(first, end))

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        mask: OmniMask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, V]; arguments as for `hidden_states`."""
        return self.logits(self.hidden_states(input_ids, inputs_embeds, mask=mask, positions=positions))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dims of every head of x [B, S, H, D] by angles [B or 1, S, half]: pairs are (i, i + half)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def select(x: Tensor, rows: Rows) -> Tensor:
    """Rows of x [B, S, ...]."""
    if rows is None:
        return x
    if isinstance(rows, slice):
        return x[:, rows]
    index = rows.reshape(*rows.shape, *[1] * (x.dim() - 2))
    return x.expand(rows.shape[0], *x.shape[1:]).gather(1, index.expand(*rows.shape, *x.shape[2:]))


def select_mask(mask: OmniMask, rows: Rows) -> OmniMask:
    if rows is None:
        return mask
    return mask.rows(rows.start, rows.stop) if isinstance(rows, slice) else mask.take_rows(rows)
