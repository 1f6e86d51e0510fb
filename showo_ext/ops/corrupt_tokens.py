"""corrupt_tokens: the masked inputs and labels of mask-token training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import check_int, check_same_device, check_shape, check_tensor
from showo_ext._native import launch
from showo_ext._operator import Operator
from showo_ext.ops._sampling import (
    Number,
    check_ids,
    check_places,
    contiguous,
    noise_arguments,
    split_number,
    split_seed,
)


def corrupt_tokens(
    ids: Tensor, mask_ratio: Number, mask_id: int, *, seed: int | Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces max(1, round(N * mask_ratio)) random places of every row by `mask_id`, and makes the labels.

    The places are those with the smallest uniforms, equal ones by lower index, so every subset of that size is equally
    likely. The product N * ratio is rounded half to even, in the precision of the ratio (fp32 for a float32 tensor,
    fp64 for a number or a float64 tensor).

    Args:
        ids: int64 `[B, N]`.
        mask_ratio: in [0, 1], a number, float32 `[B]`, or one number in a 0-d float32 or float64 tensor.
        mask_id: the id written to masked places.
        seed: an integer for the batch, or int64 `[B]`, one for each row, as in `sample_tokens`.
        noise: float32 uniforms in (0, 1), `[B, N]`, instead of Philox.

    Returns:
        `inputs`, int64 `[B, N]`; `labels`, int64 `[B, N]`, the original id where masked and -100 elsewhere; `masked`,
        bool `[B, N]`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range; on the CPU also ratios in a
            tensor outside [0, 1] and noise outside (0, 1). CUDA kernels cannot raise for values: there ratios are
            clamped, NaN to 0, and other noise gives a subset of the right size.
    """
    check_ids(ids)
    ratio, ratio_tensor, ratios = 0.0, None, None
    if isinstance(mask_ratio, Tensor) and (mask_ratio.dim() > 0 or mask_ratio.dtype == torch.float32):
        check_tensor("mask_ratio", mask_ratio, (torch.float32,))
        check_same_device("mask_ratio", mask_ratio.device, "ids", ids)
        if mask_ratio.dim() > 0:
            check_shape("mask_ratio", mask_ratio, ids.shape[0])
        ratios = mask_ratio.detach().expand(ids.shape[0])
    else:
        ratio, ratio_tensor = split_number("mask_ratio", mask_ratio, 0.0, 1.0, "a number from 0 to 1", "ids", ids)
    mask_id = check_int("mask_id", mask_id, 0)
    if noise is not None:
        check_places("noise", noise, torch.float32, "ids", ids)
    seed, seeds = split_seed(seed, ids.shape[0], "ids", ids)
    inputs, labels, masked = _OPERATOR(ids, ratio, ratio_tensor, ratios, mask_id, seed, seeds, noise)
    return inputs, labels, masked


# ----------------------------------------------------------------------------------------------------------------
# implementations


def _corrupt_tokens(
    ids: Tensor,
    mask_ratio: float,
    mask_ratio_tensor: Tensor | None,
    mask_ratios: Tensor | None,
    mask_id: int,
    seed: int,
    seeds: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, labels, masked = _corrupt_tokens_fake(ids)
    launch(
        "corrupt_tokens",
        ids,
        inputs=inputs,
        labels=labels,
        masked=masked,
        ids=ids.contiguous(),
        batch=ids.shape[0],
        length=ids.shape[1],
        mask_ratio=mask_ratio,
        mask_ratio_data=mask_ratio_tensor,
        mask_ratios=contiguous(mask_ratios),
        mask_id=mask_id,
        **noise_arguments(noise, seed, seeds, 0, None),
    )
    return inputs, labels, masked


def _corrupt_tokens_fake(ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return ids.new_empty(ids.shape), ids.new_empty(ids.shape), ids.new_empty(ids.shape, dtype=torch.bool)


# ----------------------------------------------------------------------------------------------------------------
# registration

_OPERATOR = Operator(
    "corrupt_tokens(Tensor ids, float mask_ratio, Tensor? mask_ratio_tensor, Tensor? mask_ratios, SymInt mask_id, "
    "SymInt seed, Tensor? seeds, Tensor? noise) -> (Tensor inputs, Tensor labels, Tensor masked)",
    _corrupt_tokens,
    _corrupt_tokens_fake,
)
