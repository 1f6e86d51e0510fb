"""The FLOPs of a model and of the rows of its steps.

They are those of matrix products, a product and a sum being two: of linear layers, and of attention for pairs that the
mask allows. What is computed again (`recompute`, the scores in attention's backward pass) is not counted, so that
a share of the peak is a model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from showo.batch import Batch
from showo.model.transformer import Showo
from showo.tokens import Vocabulary


@dataclass(frozen=True)
class Rows:
    """What rows hold, in numbers that add up, or what a row holds on average.

    text: places of texts and marks. image: places of codes and features. padding: places that padded rows have besides.
    targets: places that carry one. pairs: of a place and one that it sees. target_pairs: those of places with a target.
    features: places of features. encoded: pictures that the image tokenizer encodes. seen: that the vision tower sees.
    """

    text: float = 0
    image: float = 0
    padding: float = 0
    targets: float = 0
    pairs: float = 0
    target_pairs: float = 0
    features: float = 0
    encoded: float = 0
    seen: float = 0

    @property
    def places(self) -> float:
        """What is computed."""
        return self.text + self.image

    @classmethod
    def of(cls, batch: Batch, vocabulary: Vocabulary, *, encoded: float = 0, seen: float = 0) -> Rows:
        """Of a batch of padded rows."""
        packed = batch.packed(vocabulary.pad)
        columns = packed.mask.columns_per_row()[0]
        image = int((packed.input_ids >= vocabulary.image_offset).sum())
        return cls(
            text=packed.input_ids.numel() - image,
            image=image,
            padding=batch.input_ids.numel() - packed.input_ids.numel(),
            targets=packed.labelled.numel(),
            pairs=int(columns.sum()),
            target_pairs=int(columns[packed.labelled].sum()),
            features=0 if packed.features is None else packed.features.places.numel(),
            encoded=encoded,
            seen=seen,
        )

    def __add__(self, other: Rows) -> Rows:
        return Rows(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Rows)))

    def times(self, factor: float) -> Rows:
        return Rows(*(getattr(self, f.name) * factor for f in fields(Rows)))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All, and those that learn."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, learns in counts if learns)


@dataclass(frozen=True)
class Flops:
    forward: float = 0
    backward: float = 0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Product:
    """What a linear layer computes: rows [rows, inner] times its weight [inner, outer].

    backward: how many products of the same size the backward pass has: one for the gradient of the layer's input, where
    anything before the layer learns, and one for that of its weight, where that learns.
    """

    rows: float
    inner: int
    outer: int
    backward: int

    @property
    def flops(self) -> Flops:
        one = 2 * self.rows * self.inner * self.outer
        return Flops(one, one * self.backward)


@dataclass(frozen=True)
class Attention:
    """Attention of a block: `queries` places, which see `pairs` places in all, of `keys` places.

    backward: whether gradients go through it.
    """

    queries: float
    keys: float
    pairs: float
    backward: bool

    def flops(self, hidden: int) -> Flops:
        """hidden: heads times their size."""
        scores = 2 * self.pairs * hidden
        return Flops(2 * scores, 4 * scores if self.backward else 0)


@dataclass(frozen=True)
class StepWork:
    """Matrix products and attention of a forward and a backward pass over rows that are packed.

    projector, linear, head: of the vision features, of the blocks, and of the targets.
    """

    projector: list[Product]
    linear: list[Product]
    head: list[Product]
    attention: list[Attention]


def step_work(model: Showo, rows: Rows) -> StepWork:
    reached = _learns(model.showo.model.embed_tokens)
    work = StepWork([], [], [], [])
    if model.config.w_clip_vit:
        work.projector.extend(_products(model.mm_projector, rows.features, reached=False))
        reached |= _learns(model.mm_projector)
    last = model.showo.model.layers[-1]
    for block in model.showo.model.layers:
        wanted = (rows.targets, rows.target_pairs) if block is last else (rows.places, rows.pairs)
        _add_block(work, block, rows.places, *wanted, reached)  # the last block computes what has targets alone
        reached |= _learns(block)
    work.head.extend(_products(model.showo.lm_head, rows.targets, reached | _learns(model.showo.model.final_layernorm)))
    return work


def step_flops(model: Showo, rows: Rows) -> dict[str, Flops]:
    """Of `step_work`, by part of the model."""
    work, hidden = step_work(model, rows), model.config.hidden_size
    parts = {
        "projector": [product.flops for product in work.projector],
        "linear layers": [product.flops for product in work.linear],
        "attention": [each.flops(hidden) for each in work.attention],
        "head": [product.flops for product in work.head],
    }
    return {name: sum(flops, Flops()) for name, flops in parts.items() if flops}


def _add_block(work: StepWork, block: Any, places: float, wanted: float, pairs: float, reached: bool) -> None:
    """wanted: places whose result is wanted, which see `pairs` in all."""
    attention, mlp = block.self_attn, block.mlp
    normed = reached or _learns(block.input_layernorm)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    attended = normed or any(map(_learns, [*projections, attention.q_layernorm, attention.k_layernorm]))
    for module, rows, before in (
        (attention.q_proj, wanted, normed),
        (attention.k_proj, places, normed),
        (attention.v_proj, places, normed),
        (attention.dense, wanted, attended),
        (mlp.fc1, wanted, normed),
        (mlp.fc2, wanted, normed or _learns(mlp.fc1)),
    ):
        work.linear.extend(_products(module, rows, before))
    work.attention.append(Attention(wanted, places, pairs, attended))


def _products(module: nn.Module, rows: float, reached: bool) -> Iterable[Product]:
    """Of the linear layers in a module, one after the other. reached: whether gradients go back to its input."""
    for layer in (part for part in module.modules() if isinstance(part, nn.Linear)):
        weight = any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
        yield Product(rows, layer.in_features, layer.out_features, reached + weight)
        reached |= _learns(layer)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Of a forward pass of any module, as torch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()
