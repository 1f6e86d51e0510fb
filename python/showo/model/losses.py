"""Training losses: masked image tokens, next text token, next answer token, weighted 1.0 / 0.1 / 1.0.

Only places that carry a target go through the head, and where these are many, torch's chunked `linear_cross_entropy`
takes head and cross-entropy together, so logits of [B, S, V] never exist. A part without any target gives 0 with a
zero gradient (the official code: nan, or the mean over the wrong rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from showo.model.transformer import Showo
from showo.prompting import IGNORE, Batch

# Rows of logits at a time. torch's own choice (a few dozen) is 7 times slower on a CPU at 10k ids x 256 wide; from 512
# on the time equals the unchunked one, and 512 rows of 58498 logits are 120 MB in fp32.
_CHUNK_ROWS = 512
# Up to so many logits (64 MB in fp32) they are simply made: on a CPU the chunked operator then takes 3 times as long.
_SMALL_LOGITS = 2**24

DEFAULT_WEIGHTS: Mapping[str, float] = {"t2i": 1.0, "lm": 0.1, "mmu": 1.0, "mmu_vit": 1.0, "lvg": 1.0}


@dataclass(frozen=True)
class Losses:
    """total: the weighted sum, to call backward on. parts: unweighted mean of each part. targets: how many each has."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
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
    parts: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, (first, end) in batch.parts.items():
        parts[name], counts[name] = token_loss(
            model, hidden[first:end], targets[first:end], label_smoothing=label_smoothing
        )
        total = total + weights[name] * parts[name]
    return Losses(total, parts, counts)


def token_loss(model: Showo, hidden: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Mean cross-entropy of the head where the target [T] of hidden [T, hidden] is not -100, and how many those are."""
    places = (targets != IGNORE).nonzero().squeeze(1)
    if places.numel() == 0:
        return hidden.sum().float() * 0.0, 0
    head = model.showo.lm_head
    rows = hidden[places]
    device = rows.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    cross_entropy = _cross_entropy if rows.shape[0] * head.out_features <= _SMALL_LOGITS else _linear_cross_entropy
    loss = cross_entropy(rows.to(dtype), head.weight.to(dtype), head.bias.to(dtype), targets[places], label_smoothing)
    return loss, places.numel()


def _cross_entropy(rows: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(rows, weight, bias).float()  # official: fp32 logits
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, label_smoothing=smoothing)


def _linear_cross_entropy(rows: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise RuntimeError(
            f"training needs torch >= 2.13 (torch.nn.functional.linear_cross_entropy); this is {torch.__version__}"
        )
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=_CHUNK_ROWS)
    with torch.autocast(rows.device.type, enabled=False):
        # A mean in half precision would round the loss itself to three digits: then the rows are averaged here in fp32.
        half = rows.dtype in (torch.float16, torch.bfloat16)
        loss = F.linear_cross_entropy(
            rows,
            weight,
            targets,
            linear_bias=bias,
            label_smoothing=smoothing,
            ignore_index=IGNORE,
            reduction="none" if half else "mean",
            options=options if smoothing == 0 else None,  # the chunked kernel has no smoothing
        )
    return loss.float().mean() if half else loss
