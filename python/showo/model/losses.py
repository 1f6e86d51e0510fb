"""Training losses: masked image tokens, next text token, next answer token, weighted 1.0 / 0.1 / 1.0.

Only places that carry a target go through the head, and where these are many, they do so chunk by chunk together with
the cross-entropy, so logits of [B, S, V] never exist. A part without any target gives 0 with a zero gradient (the
official code: nan, or the mean over the wrong rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from showo.model.transformer import Showo
from showo.prompting import IGNORE, Batch

# Targets of a chunk. torch's own choice (a few dozen) is 7 times slower on a CPU at 10k ids x 256 wide; from 512 on the
# time equals the unchunked one, and 512 x 58498 logits are 120 MB in fp32.
_CHUNK = 512
# Up to so many logits (64 MB in fp32) they are simply made: on a CPU torch's chunked operator takes 3 times as long.
_SMALL_LOGITS = 2**24

DEFAULT_WEIGHTS: Mapping[str, float] = {"t2i": 1.0, "lm": 0.1, "mmu": 1.0, "mmu_vit": 1.0, "lvg": 1.0}


@dataclass(frozen=True)
class Losses:
    """total: the weighted sum, to call backward on. means: unweighted mean of each part. targets: how many each has."""

    total: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)


def multimodal_loss(
    model: Showo,
    batch: Batch,
    *,
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    label_smoothing: float = 0.0,
) -> Losses:
    """Losses of a batch that holds any of the parts t2i, lm, mmu, lvg.

    Each part's loss is the plain mean over its targets, as officially: soi and eoi of a t2i row are targets too.
    """
    unknown = [name for name in batch.parts if name not in weights]
    if unknown:
        raise ValueError(f"multimodal_loss: no weight for {', '.join(unknown)}; weights has {', '.join(weights)}")
    hidden = model.hidden_states(
        batch.input_ids if batch.inputs_embeds is None else None,
        batch.inputs_embeds,
        mask=batch.mask,
        positions=batch.positions,
    ).flatten(0, 1)
    targets = batch.targets.flatten()
    total = hidden.new_zeros((), dtype=torch.float32)
    means: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, (first, end) in batch.parts.items():
        means[name], counts[name] = token_loss(
            model, hidden[first:end], targets[first:end], label_smoothing=label_smoothing
        )
        total = total + weights[name] * means[name]
    return Losses(total, means, counts)


def token_loss(model: Showo, hidden: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Mean cross-entropy of the head where the target [T] of hidden [T, hidden] is not -100, and how many those are."""
    labelled = (targets != IGNORE).nonzero().squeeze(1)
    if labelled.numel() == 0:
        return hidden.sum().float() * 0.0, 0
    head = model.showo.lm_head
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    arguments = hidden[labelled].to(dtype), head.weight, head.bias, targets[labelled]
    if labelled.numel() * head.out_features <= _SMALL_LOGITS:
        loss = _cross_entropy(*arguments, label_smoothing)
    elif torch.__version__ >= "2.13" and label_smoothing == 0:
        loss = _linear_cross_entropy(*arguments)
    else:
        loss = _chunked_cross_entropy(*arguments, label_smoothing)
    return loss, labelled.numel()


def _cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float, reduction: str = "mean"
) -> Tensor:
    """hidden [T, hidden] in the precision of the product, weight [V, hidden], bias [V], targets [T] without IGNORE."""
    logits = F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype)).float()  # official: fp32 logits
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)


def _chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The same with the logits of one chunk at a time, which the backward pass computes again.

    Each chunk casts the weights for itself, so that their gradients are summed over the chunks in their own precision.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for chunk, wanted in zip(hidden.split(_CHUNK), targets.split(_CHUNK)):
        total = total + checkpoint(
            _cross_entropy, chunk, weight, bias, wanted, smoothing, "sum", use_reentrant=False, preserve_rng_state=False
        )
    return total / targets.numel()


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The same by torch's operator, which torch has from 2.13 on and which smooths no labels chunk by chunk."""
    half = hidden.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(hidden.device.type, enabled=False):
        loss = F.linear_cross_entropy(
            hidden,
            weight.to(hidden.dtype),
            targets,
            linear_bias=bias.to(hidden.dtype),
            # A mean in half precision would round the loss itself to three digits: the average is taken in fp32 below.
            reduction="none" if half else "mean",
            options=torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=_CHUNK),
        )
    return loss.float().mean() if half else loss
