"""What a training costs, on paper: the FLOPs, the memory and the time of a model and of the rows of its steps.

FLOPs are those of matrix products, a product and a sum being two: of linear layers, and of attention for pairs that the
mask allows. What is computed again (`recompute`, the scores in attention's backward pass) is not counted, so that
seconds come from a share of the peak that is a model FLOPs utilisation (MFU; PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from showo.batch import Batch
from showo.gpus import Gpu
from showo.model.losses import targets_at_once
from showo.model.transformer import Showo
from showo.tokens import Vocabulary
from showo.train.config import ShowoTraining

_FLOAT = 4  # bytes of weights, gradients, the optimizer's moments and the residual stream
_MOMENTS = 2  # that AdamW keeps of every weight


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


def step_flops(model: Showo, rows: Rows) -> dict[str, Flops]:
    """Of a forward and a backward pass over rows that are packed, by part of the model.

    The backward pass takes as much again for the gradient of a layer's input, where anything before it learns, and as
    much for that of its weight, where that learns.
    """
    parts, reached = {}, _learns(model.showo.model.embed_tokens)
    if model.config.w_clip_vit:
        parts["projector"] = _linear(model.mm_projector, rows.features, reached=False)
        reached |= _learns(model.mm_projector)
    *blocks, last = model.showo.model.layers
    linear, attention = Flops(), Flops()
    for block in [*blocks, last]:
        wanted = (rows.targets, rows.target_pairs) if block is last else (rows.places, rows.pairs)
        flops = _block(block, rows.places, *wanted, reached)  # the last block computes what has targets alone
        linear, attention = linear + flops[0], attention + flops[1]
        reached |= _learns(block)
    head = _linear(model.showo.lm_head, rows.targets, reached | _learns(model.showo.model.final_layernorm))
    return {**parts, "linear layers": linear, "attention": attention, "head": head}


def _block(block: Any, places: float, wanted: float, pairs: float, reached: bool) -> tuple[Flops, Flops]:
    """Of linear layers, and of attention. wanted: places whose result is wanted, which see `pairs` in all."""
    attention, mlp = block.self_attn, block.mlp
    normed = reached or _learns(block.input_layernorm)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    attended = normed or any(map(_learns, [*projections, attention.q_layernorm, attention.k_layernorm]))
    linear = (
        _linear(attention.q_proj, wanted, normed)
        + _linear(attention.k_proj, places, normed)
        + _linear(attention.v_proj, places, normed)
        + _linear(attention.dense, wanted, attended)
        + _linear(mlp.fc1, wanted, normed)
        + _linear(mlp.fc2, wanted, normed or _learns(mlp.fc1))
    )
    scores = 2 * pairs * attention.num_heads * attention.head_dim
    return linear, Flops(2 * scores, 4 * scores if attended else 0)


def _linear(module: nn.Module, rows: float, reached: bool) -> Flops:
    """Of the linear layers in a module, one after the other. reached: whether gradients go back to its input."""
    flops = Flops()
    for layer in (part for part in module.modules() if isinstance(part, nn.Linear)):
        forward = 2 * rows * layer.in_features * layer.out_features
        weight = any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
        flops += Flops(forward, forward * (reached + weight))
        reached |= _learns(layer)
    return flops


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def state_memory(model: Showo, config: ShowoTraining) -> dict[str, float]:
    """Bytes of the weights, and of all that a training keeps beside them on a device that has the whole model."""
    everything, learned = count_parameters(model)
    found: dict[str, float] = {"weights": _FLOAT * everything}
    if config.precision == "bf16":  # autocast's copies of the weights of linear layers
        found["weights in bf16"] = 2 * sum(
            layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)
        )
    found |= {"gradients": _FLOAT * learned, "optimizer": _MOMENTS * _FLOAT * learned}
    if config.ema_decay:
        found["average of the weights"] = _FLOAT * learned
    return found


def step_memory(model: Showo, precision: str, rows: Iterable[Rows]) -> dict[str, float]:
    """Bytes that a micro-batch takes beside the weights, by what is computed again (`recompute`): an estimate.

    rows: of each stream. Counted are what autograd keeps of the blocks, of which the one that is computed again is
    there as a whole, and the logits that are there at once, with their log-softmax and its gradient.
    """
    rows, sizes = list(rows), model.config
    places = sum(some.places for some in rows)
    at_once = sum(targets_at_once(round(some.targets), sizes.vocab_size, "cuda") for some in rows)
    logits = 3 * _FLOAT * at_once * sizes.vocab_size
    kept = activations_of_place(model, precision)
    again = {"none": 0.0, "selective": kept["none"], "full": kept["none"]}
    return {how: places * (sizes.num_layers * kept[how] + again[how]) + logits for how in kept}


def activations_of_place(model: Showo, precision: str) -> dict[str, float]:
    """Bytes that the backward pass keeps of a place in a block, by what is computed again (`recompute`).

    none: the block's input and statistics in fp32; in the precision of the products the normed input, of which
    autocast makes a copy for each of the four layers that read it, q and k before and after rotation, v, what attention
    gives, by heads and by places, and the MLP's inner places before and after the GELU.
    selective: the block's input, and the results of products and of attention. full: the block's input.
    """
    sizes = model.config
    hidden, wide, half = sizes.hidden_size, sizes.intermediate_size, precision == "bf16"
    size, copies = (2, 4) if half else (_FLOAT, 1)
    statistics = _FLOAT * (sizes.num_heads + 2)  # of attention's rows, and of LayerNorm
    residual = _FLOAT * hidden
    return {
        "none": residual + statistics + size * ((copies + 7) * hidden + 2 * wide),
        "selective": residual + _FLOAT * sizes.num_heads + size * (6 * hidden + wide),
        "full": residual,
    }


def seconds(flops: float, gpu: Gpu, count: int, precision: str, mfu: float) -> float:
    """Of so many FLOPs on `count` GPUs that reach a share `mfu` of their peak."""
    return flops / (count * mfu * (gpu.bf16 if precision == "bf16" else gpu.fp32))
