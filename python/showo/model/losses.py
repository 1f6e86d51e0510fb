"""Training losses: masked image tokens, next text token, next answer token, weighted 1.0 / 0.1 / 1.0.

Only places that carry a target go through the head, and where these are many, they do so chunk by chunk together with
the cross-entropy, so logits of [B, S, V] never exist. A part without any target gives 0 with a zero gradient (the
official code: nan, or the mean over the wrong rows).

Nothing here waits for the device: a batch knows its targets' places and their number, and losses stay tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from showo.batch import Batch
from showo.model.transformer import Showo

# Up to so many logits (64 MB in fp32) are made at once; of more targets, a chunk's. On a CPU torch's chunked operator
# takes 3 times as long as all at once.
_LOGITS_AT_ONCE = 2**24
# On a GPU 256 MB: the host launches some 40 kernels for every chunk, and a training of a small model waited for it.
_LOGITS_AT_ONCE_ON_GPU = 2**26
# Targets that a chunk has at least. torch's own choice (a few dozen) is 7 times slower on a CPU at 10k ids x 256 wide;
# from 512 on the time equals the unchunked one, and 512 x 58498 logits are 120 MB in fp32.
_MIN_CHUNK = 512
# Tensor cores read and write rows that begin at a multiple of 16 bytes; for others cuBLAS falls back to slower kernels.
# A row of logits is as long as the vocabulary, so on a GPU the head gets rows up to a multiple of this.
_ROWS_MULTIPLE = 64
_HALF = (torch.float16, torch.bfloat16)

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "t2i": 1.0,
    "lm": 0.1,
    "mmu": 1.0,
    "mmu_vit": 1.0,
    "lvg": 1.0,
    "t2v": 1.0,
    "v2v": 1.0,
}


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, part by part.

    sums: cross-entropies of a part's targets, added up, each times its target's weight; float32, no dimension, with
        gradient. A mean over several batches, or over the ranks of a group, is the sum of their sums over the sum of
        their counts.
    counts: what the targets of a part weigh in all: their number, unless the batch weighs them (`showo.batch.Part`).
    weights: of the parts in `total`.
    """

    sums: dict[str, Tensor]
    counts: dict[str, float]
    weights: Mapping[str, float]

    @property
    def means(self) -> dict[str, Tensor]:
        """The loss of each part, not weighted."""
        return self.means_over(self.counts)

    def means_over(self, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """This batch's share of the mean over `counts` targets of each part that counts have: 0 where there are none,
        and where this batch has no such part.
        """
        nothing = next(iter(self.sums.values())).new_zeros(())
        return {name: self.sums.get(name, nothing) / (count or 1.0) for name, count in counts.items()}

    @property
    def total(self) -> Tensor:
        """The weighted sum of the means, to call backward on."""
        return self.total_over(self.counts)

    def total_over(self, counts: Mapping[str, float]) -> Tensor:
        """This batch's share of the total of a larger one, whose parts have `counts` targets.

        The shares of all micro-batches and ranks add up to that total, and so do their gradients.
        """
        return torch.stack([self.weights[name] * mean for name, mean in self.means_over(counts).items()]).sum()


def multimodal_loss(
    model: Showo,
    batch: Batch,
    *,
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    label_smoothing: float = 0.0,
) -> Losses:
    """Losses of a batch that holds any of the parts that `weights` names.

    Each part's loss is the plain mean over its targets, as officially: soi and eoi of a t2i row are targets too.
    """
    unknown = [name for name in batch.parts if name not in weights]
    if unknown:
        raise ValueError(f"multimodal_loss: no weight for {', '.join(unknown)}; weights has {', '.join(weights)}")
    packed = len(batch.input_ids) == 1
    hidden = model.hidden_states(
        batch.input_ids,
        features=batch.features,
        mask=batch.mask,
        positions=batch.positions,
        rows=batch.labelled[None] if packed else None,  # then the last layer, too, computes only what is asked for
    ).flatten(0, 1)
    hidden = hidden if packed else hidden[batch.labelled]
    targets = batch.targets.flatten()[batch.labelled]
    counts = [part.targets for part in batch.parts.values()]
    target_weights = [None] * len(counts) if batch.weights is None else batch.weights.split(counts)
    sums = {
        name: token_loss(model, some, wanted, weight, label_smoothing=label_smoothing)
        for name, some, wanted, weight in zip(
            batch.parts, hidden.split(counts), targets.split(counts), target_weights, strict=True
        )
    }
    return Losses(sums, {name: part.weight for name, part in batch.parts.items()}, weights)


def targets_at_once(targets: int, vocab_size: int, device: str) -> int:
    """Of how many of the targets the logits are in memory together on a kind of device (`torch.device.type`)."""
    logits = _LOGITS_AT_ONCE_ON_GPU if device == "cuda" else _LOGITS_AT_ONCE
    return min(targets, max(_MIN_CHUNK, logits // vocab_size))


def token_loss(
    model: Showo, hidden: Tensor, targets: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Sum of the head's cross-entropies for hidden [T, hidden] and targets int64 [T], times weights float32 [T]."""
    head = model.showo.lm_head
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    arguments = hidden.to(dtype), head.weight, head.bias, targets
    chunk = targets_at_once(targets.numel(), head.out_features, device)
    if chunk == targets.numel():
        return _cross_entropy(*arguments, weights, label_smoothing)
    if hasattr(F, "linear_cross_entropy") and weights is None and label_smoothing == 0:
        return _linear_cross_entropy(*arguments, chunk)
    return _chunked_cross_entropy(*arguments, weights, label_smoothing, chunk)


def _rows_of_product(vocab_size: int, hidden: Tensor) -> int:
    """How many rows the head has in its product with `hidden`: more than the vocabulary, where that makes it faster."""
    multiple = _ROWS_MULTIPLE if hidden.is_cuda and hidden.dtype in _HALF else 1
    return -(-vocab_size // multiple) * multiple


def _head_of_product(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The head in the precision of `hidden`. The rows that are added give logits of -inf: a probability of zero, and
    gradients of zero.
    """
    weight, bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
    extra = _rows_of_product(len(bias), hidden) - len(bias)
    if extra:
        weight, bias = F.pad(weight, (0, 0, 0, extra)), F.pad(bias, (0, extra), value=-torch.inf)
    return weight, bias


def _cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float
) -> Tensor:
    """hidden [T, hidden] in the precision of the product, weight [V, hidden], bias [V], targets and weights [T]."""
    logits = F.linear(hidden, *_head_of_product(hidden, weight, bias)).float()  # official: fp32 logits
    if smoothing:  # spreads over every column: none may be -inf
        logits = logits[:, : len(bias)]
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    return (F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none") * weights).sum()


def _chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, chunk: int
) -> Tensor:
    """The same with the logits of one chunk at a time, which the backward pass computes again.

    Each chunk casts the head for itself, so that its gradients are summed over the chunks in their own precision.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for first in range(0, targets.numel(), chunk):
        some = slice(first, first + chunk)
        total = total + checkpoint(
            _cross_entropy,
            hidden[some],
            weight,
            bias,
            targets[some],
            None if weights is None else weights[some],
            smoothing,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The same by torch's operator, which newer releases have (2.13 is the first), and which smooths no labels."""
    weight, bias = _head_of_product(hidden, weight, bias)
    with torch.autocast(hidden.device.type, enabled=False):
        loss = F.linear_cross_entropy(
            hidden,
            weight,
            targets,
            linear_bias=bias,
            # Of a sum, the operator would make the head's gradient in the forward pass, and copy it in the backward
            # pass: the head is large, and its gradient would be there twice. And in half precision a sum would round
            # the loss itself to three digits.
            reduction="none",
            options=torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=chunk),
        )
    return loss.float().sum()
