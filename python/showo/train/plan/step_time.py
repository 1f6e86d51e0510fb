"""How long a step takes on GPUs that share a model: the sum of its kernels, and what travels and is not hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from showo.gpus import Gpu
from showo.model.transformer import Showo
from showo.train.config import ShowoTraining
from showo.train.plan.flops import Product, Rows, StepWork, count_parameters, step_work
from showo.train.plan.kernels import MEMORY_SHARE, attention_seconds, memory_seconds, product_seconds
from showo.train.plan.network import HOST_COPY, Links, copies_of, shards_of, talk_seconds
from showo.train.plan.sharing import Sharing

_FLOAT, _HALF = 4, 2  # bytes
# Of AdamW for a weight: weight, gradient and both moments are read, all but the gradient written; the norm reads the
# gradient once more. Of an average of the weights: it and the weight are read, it is written.
_OPTIMIZER_BYTES, _AVERAGE_BYTES = 7 * _FLOAT + _FLOAT, 3 * _FLOAT
_LOGIT_BYTES = 26  # logits are written, made fp32, their log-softmax taken, and all that back again
# Kernels that a block and a micro-batch launch, forward and backward, and what Python and torch take for each: assumed.
_LAUNCHES_OF_BLOCK, _LAUNCHES_AROUND, _HOST_OF_LAUNCH = 65, 150, 8e-6


class Passes(NamedTuple):
    """Seconds of the forward and of the backward pass."""

    forward: float
    backward: float

    def again(self) -> Passes:
        """Where the backward pass computes the forward pass again."""
        return Passes(self.forward, self.backward + self.forward)


class Traffic(NamedTuple):
    """seconds: in which something travels, in a step. exposed: of them those that nothing hides."""

    seconds: float
    exposed: float


@dataclass(frozen=True)
class StepTime:
    """parts: seconds of the device in a step, by what it does. travel: what the GPUs exchange. host: seconds of Python
    in a step, while the device works. talk: in which the ranks tell each other about their rows, on the CPU too.
    """

    parts: Mapping[str, float]
    travel: Mapping[str, Traffic] = field(default_factory=dict)
    host: float = 0.0
    talk: float = 0.0

    @property
    def device(self) -> float:
        return sum(self.parts.values()) + sum(each.exposed for each in self.travel.values())

    @property
    def seconds(self) -> float:
        """The program runs ahead of the device, until one of them is always busy."""
        return max(self.device, self.host + self.talk)


def micro_batch_seconds(
    model: Showo, config: ShowoTraining, gpu: Gpu, rows: Rows, *, autocast: bool
) -> dict[str, Passes]:
    """Of a micro-batch on one GPU, by part of the model. autocast: as of `activations_of_place`."""
    work, half = step_work(model, rows), config.precision == "bf16"
    hidden, layers = model.config.hidden_size, model.config.num_layers
    blocks = {
        "linear layers": _products(gpu, half, work.linear),
        "attention": _attention(gpu, half, work, hidden),
        "rope and QK-norm": Passes(
            memory_seconds(gpu, layers * rows.places * 6 * hidden * _size(half)),
            memory_seconds(gpu, layers * rows.places * 8 * hidden * _size(half)),
        ),
        "norms, GELU, sums, casts": _elementwise(model, gpu, rows, half=half, autocast=half and autocast),
    }
    again = {"none": (), "selective": ("rope and QK-norm", "norms, GELU, sums, casts"), "full": tuple(blocks)}
    for name in again[config.recompute]:
        blocks[name] = blocks[name].again()
    logits = memory_seconds(gpu, _LOGIT_BYTES * rows.targets * model.config.vocab_size)
    head = _products(gpu, half, work.head)
    found = {**blocks, "head and loss": Passes(head.forward + logits / 2, head.backward + logits / 2)}
    if work.projector:
        found["projector"] = _products(gpu, half, work.projector)
    table = model.showo.model.embed_tokens.weight.numel()
    place = memory_seconds(gpu, 2 * _FLOAT * rows.places * hidden)
    found["embeddings"] = Passes(place, place + memory_seconds(gpu, _FLOAT * table))
    return found


def _size(half: bool) -> int:
    return _HALF if half else _FLOAT


def _products(gpu: Gpu, half: bool, products: list[Product]) -> Passes:
    seconds = [product_seconds(gpu, half, each.rows, each.inner, each.outer) for each in products]
    return Passes(sum(seconds), sum(one * each.backward for one, each in zip(seconds, products, strict=True)))


def _attention(gpu: Gpu, half: bool, work: StepWork, hidden: int) -> Passes:
    forward = backward = 0.0
    for each in work.attention:
        if half:
            one, back = attention_seconds(gpu, hidden, (each.queries + each.keys) / 2, each.pairs)
        else:
            flops = each.flops(hidden)
            one, back = (part / (gpu.products * gpu.fp32) for part in (flops.forward, flops.backward))
        forward, backward = forward + one, backward + (back if each.backward else 0.0)
    return Passes(forward, backward)


def _elementwise(model: Showo, gpu: Gpu, rows: Rows, *, half: bool, autocast: bool) -> Passes:
    """What torch's own kernels read and write between the products of the blocks, by how often each is read or written.

    In units of a place's width: `product` bytes in the precision of products, `residual` in that of the sum that runs
    through the blocks.
    """
    sizes = model.config
    product = _size(half)
    residual = _FLOAT if autocast else product
    wide = sizes.intermediate_size / sizes.hidden_size
    cast = product + residual if autocast else 0
    forward = (
        2 * residual  # LayerNorm
        + 4 * cast  # its result, for each of the four layers that read it
        + 2 * product  # what attention gives, from heads to places
        + 2 * wide * product  # GELU
        + 2 * (2 * residual + product)  # two sums
    )
    backward = (
        2 * cast  # gradients of both summands
        + (5 + wide) * product  # gradients of the six biases
        + 3 * wide * product  # GELU
        + 2 * product
        + 4 * cast
        + 9 * residual  # the sum of four gradients of the normed input
        + 5 * residual  # LayerNorm, for its input and for its weight and bias
        + 3 * residual  # the sum with the gradient that goes around the block
    )
    places = sizes.num_layers * rows.places * sizes.hidden_size
    return Passes(memory_seconds(gpu, places * forward), memory_seconds(gpu, places * backward))


def step_time(
    model: Showo,
    config: ShowoTraining,
    gpu: Gpu,
    rows: Rows,
    sharing: Sharing,
    links: Links,
    encoders: Mapping[str, float] | None = None,
) -> StepTime:
    """Of a step in which every micro-batch of the busiest GPU has `rows`.

    encoders: FLOPs of the frozen networks in such a micro-batch, by name; they compute in tf32.
    """
    autocast = sharing.whole
    micro = micro_batch_seconds(model, config, gpu, rows, autocast=autocast)
    parts = {name: config.accumulate * sum(passes) for name, passes in micro.items()}
    for name, flops in (encoders or {}).items():
        parts[name] = config.accumulate * flops / (gpu.products * gpu.tf32)
    parts["weights and gradients"] = memory_seconds(gpu, _weight_bytes(model, config, autocast))
    learned = count_parameters(model)[1] / sharing.shards
    changed = learned * (_OPTIMIZER_BYTES + (_AVERAGE_BYTES if config.ema_decay else 0))
    parts["optimizer"] = changed / (MEMORY_SHARE * gpu.host_memory) if sharing.offload else memory_seconds(gpu, changed)
    host = config.accumulate * (_LAUNCHES_AROUND + _LAUNCHES_OF_BLOCK * model.config.num_layers) * _HOST_OF_LAUNCH
    travel = _replicated(model, micro, sharing, links) if autocast else _sharded(model, config, micro, sharing, links)
    return StepTime(parts, travel if sharing.gpus > 1 or sharing.offload else {}, host, talk_seconds(sharing.gpus))


def _weight_bytes(model: Showo, config: ShowoTraining, autocast: bool) -> float:
    """Read and written of weights and gradients in a step: their casts, the sums of gradients of micro-batches, and
    where weights are shared out, their way into and out of what is sent.
    """
    everything, learned = count_parameters(model)
    sums = 3 * _FLOAT * learned * (config.accumulate - 1)
    if not autocast:
        return config.accumulate * 2 * 2 * _HALF * everything + (_HALF + _FLOAT) * learned + sums
    if config.precision != "bf16":
        return sums
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return config.accumulate * 2 * (_HALF + _FLOAT) * linear + sums


def _blocks(micro: Mapping[str, Passes]) -> Passes:
    names = ("linear layers", "attention", "rope and QK-norm", "norms, GELU, sums, casts")
    return Passes(*(sum(micro[name][way] for name in names) for way in (0, 1)))


def _replicated(model: Showo, micro: Mapping[str, Passes], sharing: Sharing, links: Links) -> dict[str, Traffic]:
    """Gradients are added up while the last micro-batch goes backward: all but those of the embeddings, which are there
    when it ends.
    """
    group = copies_of(sharing, links)
    learned = count_parameters(model)[1]
    last = count_parameters(model.showo.model.embed_tokens)[1]
    hidden, alone = group.sum(_FLOAT * (learned - last)), group.sum(_FLOAT * last)
    backward = sum(passes.backward for passes in micro.values())
    return {"sum of gradients": Traffic(hidden + alone, max(0.0, hidden - backward) + alone)}


def _sharded(
    model: Showo, config: ShowoTraining, micro: Mapping[str, Passes], sharing: Sharing, links: Links
) -> dict[str, Traffic]:
    """Weights of a block come while the block before it computes, and gradients of a block are shared out while the
    next one does; copies of the model add up their parts at the same time, over other links. Nothing hides the weights
    of the first block of each pass, nor the gradients of the last one, nor what is no block (embeddings, head).
    With `offload` a GPU's part comes from the CPU's memory before it is gathered, and its gradients go there.
    """
    shards, copies, layers = shards_of(sharing, links), copies_of(sharing, links), model.config.num_layers
    size = _size(config.precision == "bf16")
    weights, learned = (sum(count_parameters(b)[i] for b in model.showo.model.layers) / layers for i in (0, 1))
    whole, whole_learned = count_parameters(model)
    rest, rest_learned = whole - layers * weights, whole_learned - layers * learned
    forward, backward = (seconds / layers for seconds in _blocks(micro))
    copied = _FLOAT / HOST_COPY / sharing.shards if sharing.offload else 0.0  # seconds for each weight of the model
    gather, rest_gather = (shards.gather(size * n) + copied * n for n in (weights, rest))
    scatter, rest_scatter = (shards.gather(_FLOAT * n) + copied * n for n in (learned, rest_learned))
    across = across_rest = 0.0
    if sharing.kind == "hybrid":
        across, across_rest = (copies.sum(_FLOAT * n / sharing.shards) for n in (learned, rest_learned))
    late = max(0.0, gather - forward) + max(0.0, gather - backward)
    later = max(0.0, gather + scatter - backward) - max(0.0, gather - backward)
    found = {
        "weights": Traffic(
            config.accumulate * (2 * layers * gather + rest_gather),
            config.accumulate * (2 * gather + rest_gather + (layers - 1) * late),
        ),
        "shares of gradients": Traffic(layers * scatter + rest_scatter, scatter + rest_scatter + (layers - 1) * later),
    }
    if sharing.kind == "hybrid":
        last = max(0.0, across - max(backward, gather + scatter))
        found["sum of gradients"] = Traffic(layers * across + across_rest, across + across_rest + (layers - 1) * last)
    return found
