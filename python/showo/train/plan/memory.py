"""The memory that a training takes on each of the devices that share a model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from showo.model.image_tokenizer import ENCODED_AT_ONCE, ImageTokenizer, ImageTokenizerConfig
from showo.model.losses import targets_at_once
from showo.model.transformer import Showo
from showo.train.config import ShowoTraining
from showo.train.plan.flops import Rows, count_parameters
from showo.train.plan.sharing import Sharing

_FLOAT = 4  # bytes of weights, gradients, the optimizer's moments, and under autocast of the residual stream
_HALF = 2
_MOMENTS = 2  # that AdamW keeps of every weight
ALONE = Sharing("ddp", 1, 1)
ON_CPU = ", CPU"  # ends the names of what does not lie on a device

# Of the CUDA context with torch's kernels, cuBLAS's workspaces and NCCL's buffers: what such processes are seen to have
# before they train. Assumed.
_CONTEXT = 1.0 * 2**30
# Tensors of the encoder's first level, the largest ones, that are there at once: input, output and two between.
_LEVEL_TENSORS = 4


def state_memory(model: Showo, config: ShowoTraining, sharing: Sharing = ALONE) -> dict[str, float]:
    """Bytes of the weights, and of all that a training keeps beside them from step to step, for each device; what has
    "CPU" in its name lies in the memory of the CPU, and the rest on the device.

    Of weights that are shared out, what is whole for a while is there too: copies in the precision of products, of two
    blocks (one computes, the next one is under way) and of what is no block; of gradients, those of a block, or with
    `accumulate` all, as ranks add them up in the last micro-batch only.
    """
    everything, learned = count_parameters(model)
    blocks = [sum(count_parameters(block)[i] for block in model.showo.model.layers) for i in (0, 1)]
    one, shards = blocks[0] / model.config.num_layers, sharing.shards
    size = _HALF if config.precision == "bf16" else _FLOAT
    kept: dict[str, float] = {
        "weights": _FLOAT * everything / shards,
        "gradients": _FLOAT * learned / shards,
        "optimizer": _MOMENTS * _FLOAT * learned / shards,
    }
    if config.ema_decay:
        kept["average of the weights"] = _FLOAT * learned / shards
    found = {f"{name}{ON_CPU}": amount for name, amount in kept.items()} if sharing.offload else dict(kept)
    if sharing.whole:
        if config.precision == "bf16":  # autocast's copies of the weights of linear layers
            linear = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
            found["weights in bf16"] = _HALF * sum(layer.weight.numel() for layer in linear)
    else:
        found["whole weights"] = size * (everything - blocks[0] + 2 * one)
        whole = learned if config.accumulate > 1 else blocks[1] / model.config.num_layers
        found["whole gradients"] = _FLOAT * whole
    return found


def logits_memory(model: Showo, rows: Iterable[Rows]) -> float:
    """Bytes of the logits that are there at once, with their log-softmax and its gradient. rows: of each stream."""
    size = model.config.vocab_size
    return 3 * _FLOAT * size * sum(targets_at_once(round(some.targets), size, "cuda") for some in rows)


def activation_memory(model: Showo, precision: str, places: float, *, autocast: bool = True) -> dict[str, float]:
    """Bytes that autograd keeps of the blocks over so many places, by what is computed again (`recompute`), of which
    the block that is computed again is there as a whole.
    """
    kept = activations_of_place(model, precision, autocast=autocast)
    again = {"none": 0.0, "selective": kept["none"], "full": kept["none"]}
    return {how: places * (model.config.num_layers * kept[how] + again[how]) for how in kept}


def activations_of_place(model: Showo, precision: str, *, autocast: bool = True) -> dict[str, float]:
    """Bytes that the backward pass keeps of a place in a block, by what is computed again (`recompute`).

    none: the block's input and statistics; in the precision of the products the normed input, of which autocast makes
    a copy for each of the four layers that read it, q and k before and after rotation, v, what attention gives, by
    heads and by places, and the MLP's inner places before and after the GELU.
    selective: the block's input, and the results of products and of attention. full: the block's input.
    autocast: inputs and normed inputs are fp32. Without it (`parallel: fsdp`) all is in the precision of the products.
    """
    sizes = model.config
    hidden, wide, half = sizes.hidden_size, sizes.intermediate_size, precision == "bf16"
    size = _HALF if half else _FLOAT
    copies = 4 if half and autocast else 1
    statistics = _FLOAT * (sizes.num_heads + 2)  # of attention's rows, and of LayerNorm
    residual = (_FLOAT if autocast else size) * hidden
    return {
        "none": residual + statistics + size * ((copies + 7) * hidden + 2 * wide),
        "selective": residual + _FLOAT * sizes.num_heads + size * (6 * hidden + wide),
        "full": residual,
    }


def workspace_memory(model: Showo, rows: Rows, resolution: int, images: ImageTokenizerConfig | None) -> float:
    """Bytes that operators need for themselves: attention's backward pass for gradients (fp32 sums of those of q, and
    those of q, k and v), the frozen image tokenizer with what it computes of the pictures that it encodes at once, and
    what CUDA has before anything is computed. images: None where there is nothing to encode.
    """
    hidden = model.config.hidden_size
    attention = rows.places * hidden * (_FLOAT + 3 * _HALF)
    encoding = 0.0
    if images is not None:
        with torch.device("meta"):
            weights = count_parameters(ImageTokenizer(images))[0]
        pictures = min(rows.encoded, ENCODED_AT_ONCE)
        encoding = _FLOAT * (weights + pictures * resolution**2 * images.channels * _LEVEL_TENSORS)
    return attention + encoding + _CONTEXT
