"""resample: one MaskGIT step, sample_tokens and remask fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import INT64_END, check_int, check_same_device, check_same_shape, check_shape
from showo_ext._native import launch
from showo_ext._operator import Operator
from showo_ext.ops._sampling import (
    SAMPLING_SCHEMA,
    Number,
    check_ids,
    check_logits,
    check_places,
    contiguous,
    noise_arguments,
    row_stride,
    sample_arguments,
    split_guidance,
    split_limits,
    split_mask_len,
    split_noise_temperature,
    split_seed,
    split_step,
    split_temperature,
    split_weights,
)
from showo_ext.reference.resample import ResampleOutput


def resample(
    logits: Tensor,
    ids: Tensor,
    mask_len: int | Tensor,
    mask_id: int,
    *,
    uncond: Tensor | None = None,
    known: Tensor | None = None,
    offset: int = 0,
    guidance: Number = 0.0,
    weights: Tensor | None = None,
    temperature: Number = 1.0,
    top_k: int | Tensor = 0,
    top_p: Number = 1.0,
    remask_temperature: Number = 1.0,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    remask_noise: Tensor | None = None,
) -> ResampleOutput:
    """Fills every unknown place of a canvas of tokens, then masks the least confident of the filled places again.

    `sample_tokens` on the unknown places, plus `offset`, then `remask` with the log-probabilities as confidence. Known
    places keep their token, get logprob 0, are never masked, and their logits and noise are not looked at.

    Args:
        logits: `[B, N, V]`, or with weights `[K, B, N, V]`, as in `sample_tokens`.
        ids: int64 `[B, N]`, the canvas. Ids count from wherever the caller likes: `offset` is the id of code 0.
        mask_len: places to mask, int, int64 `[B]` or 0-d, as in `remask`; 0 finishes the picture.
        mask_id: the id of a masked place.
        uncond, guidance, weights, temperature, top_k, top_p, seed, step, noise: as in `sample_tokens`.
        known: bool `[B, N]`; without it, the places where `ids` is not `mask_id`.
        offset: added to every sampled index.
        remask_temperature, remask_noise: `temperature` and `noise` of `remask`. The official schedule multiplies the
            temperature by 1 - (step + 1) / steps after every step; it is the caller's to compute, like mask_len.

    Returns:
        `(ids, masked, sampled, logprob)`, all `[B, N]`: the canvas of the next step; the places masked in it; the
        canvas before masking, without any mask; the log-probability of each sampled token.

    Raises:
        TypeError, ValueError: as `sample_tokens` and `remask`. On CUDA a row of logits that the CPU refuses gives
            `offset` with logprob NaN, and is masked again before any other place.
    """
    one = check_logits(logits, uncond, noise, weights, guidance)
    check_shape("logits", one, "B", "N", "V")
    check_ids(ids)
    check_same_device("ids", ids.device, "logits", logits)
    check_same_shape("ids", ids, "the places of logits", one.shape[:2])
    if known is not None:
        check_places("known", known, torch.bool, "ids", ids)
    if remask_noise is not None:
        check_places("remask_noise", remask_noise, torch.float32, "ids", ids)
    weight, weight_tensor = split_guidance(guidance, uncond, logits)
    count, counts = split_mask_len(mask_len, ids)
    seed, seeds = split_seed(seed, ids.shape[0], "ids", ids)
    step, step_tensor = split_step(step, "ids", ids)
    if weight == 0 and weights is None:
        uncond = None
    out = _OPERATOR(
        logits.detach(),
        None if uncond is None else uncond.detach(),
        ids,
        known,
        count,
        counts,
        check_int("mask_id", mask_id, 0),
        check_int("offset", offset, 0, INT64_END // 2),
        *split_noise_temperature("remask_temperature", remask_temperature, ids),
        seed,
        seeds,
        step,
        step_tensor,
        noise,
        remask_noise,
        weight,
        weight_tensor,
        split_weights(weights),
        *split_temperature(temperature, logits),
        *split_limits(top_k, top_p, logits),
    )
    return ResampleOutput(*out)


# ----------------------------------------------------------------------------------------------------------------
# implementations

_Output = tuple[Tensor, Tensor, Tensor, Tensor]


def _resample(
    logits: Tensor,
    uncond: Tensor | None,
    ids: Tensor,
    known: Tensor | None,
    mask_len: int,
    mask_lens: Tensor | None,
    mask_id: int,
    offset: int,
    remask_temperature: float,
    remask_temperature_tensor: Tensor | None,
    seed: int,
    seeds: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    noise: Tensor | None,
    remask_noise: Tensor | None,
    *sampling: Any,
) -> _Output:
    out, masked, sampled, logprob = _resample_fake(logits)
    launch(
        "resample",
        logits,
        ids_out=out,
        masked=masked,
        sampled=sampled,
        logprob=logprob,
        canvas=ids.contiguous(),
        known=contiguous(known),
        mask_len=mask_len,
        mask_len_data=contiguous(mask_lens),
        mask_len_stride=row_stride(mask_lens),
        mask_id=mask_id,
        offset=offset,
        remask_temperature=remask_temperature,
        remask_temperature_data=remask_temperature_tensor,
        remask_noise=contiguous(remask_noise),
        **sample_arguments(logits, uncond, *sampling),
        **noise_arguments(noise, seed, seeds, step, step_tensor),
    )
    return out, masked, sampled, logprob


def _resample_fake(logits: Tensor, *_: Any) -> _Output:
    shape = logits.shape[-3:-1]
    return (
        logits.new_empty(shape, dtype=torch.int64),
        logits.new_empty(shape, dtype=torch.bool),
        logits.new_empty(shape, dtype=torch.int64),
        logits.new_empty(shape, dtype=torch.float32),
    )


# ----------------------------------------------------------------------------------------------------------------
# registration

_OPERATOR = Operator(
    "resample(Tensor logits, Tensor? uncond, Tensor ids, Tensor? known, SymInt mask_len, Tensor? mask_lens, "
    "SymInt mask_id, SymInt offset, float remask_temperature, Tensor? remask_temperature_tensor, SymInt seed, "
    "Tensor? seeds, SymInt step, Tensor? step_tensor, Tensor? noise, Tensor? remask_noise, "
    f"{SAMPLING_SCHEMA}) -> (Tensor ids, Tensor masked, Tensor sampled, Tensor logprob)",
    _resample,
    _resample_fake,
)
