"""remask: which of the sampled tokens become masks again, by confidence, exactly as many as asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showo_ext._checks import check_int
from showo_ext._native import launch
from showo_ext._operator import Operator
from showo_ext.ops._sampling import (
    Number,
    check_ids,
    check_places,
    contiguous,
    noise_arguments,
    row_stride,
    split_mask_len,
    split_noise_temperature,
    split_seed,
    split_step,
)


def remask(
    ids: Tensor,
    logprob: Tensor,
    known: Tensor,
    mask_len: int | Tensor,
    temperature: Number,
    mask_id: int,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks the `mask_len` least confident unknown places of every row again.

    Confidence is logprob + temperature * Gumbel(u), Gumbel(u) = -log(-log u), one u per place, computed in fp64; the
    smallest are masked, equal ones by lower index. Known places are never masked, however high the temperature, and
    a row never masks more places than are unknown: one without any is left alone. (The official code remasks at least
    one token of every row, and may take known ones at high temperatures.)

    Args:
        ids: int64 `[B, N]`, the tokens of all places.
        logprob: float32 `[B, N]`; not read at known places.
        known: bool `[B, N]`, the places whose token was settled before.
        mask_len: places to mask, at least 0: an int, or int64 `[B]` (or 0-d), which may live on the GPU; there a
            negative entry counts as 0.
        temperature: between 0 (no noise) and 1e30; a number, or a tensor as in `sample_tokens`.
        mask_id: the id written to masked places.
        seed, step: as in `sample_tokens`; the noise has its own stream, keyed by row and place.
        noise: float32 uniforms in (0, 1), `[B, N]`, instead of Philox.

    Returns:
        `ids`, int64 `[B, N]`, a copy with mask_id at the masked places, and `masked`, bool `[B, N]`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range; on the CPU also NaN in
            logprob at an unknown place, noise outside (0, 1), a negative entry of mask_len. CUDA kernels cannot raise
            for values: there a place whose confidence is NaN (noise outside [0, 1] makes it so) is masked first, and a
            temperature tensor below 0 or NaN counts as 0.
    """
    check_ids(ids)
    check_places("logprob", logprob, torch.float32, "ids", ids)
    check_places("known", known, torch.bool, "ids", ids)
    if noise is not None:
        check_places("noise", noise, torch.float32, "ids", ids)
    mask_id = check_int("mask_id", mask_id, 0)
    count, counts = split_mask_len(mask_len, ids)
    seed, seeds = split_seed(seed, ids.shape[0], "ids", ids)
    step, step_tensor = split_step(step, "ids", ids)
    out, masked = _OPERATOR(
        ids,
        logprob.detach(),
        known,
        count,
        counts,
        *split_noise_temperature("temperature", temperature, ids),
        mask_id,
        seed,
        seeds,
        step,
        step_tensor,
        noise,
    )
    return out, masked


# ----------------------------------------------------------------------------------------------------------------
# implementations


def _remask(
    ids: Tensor,
    logprob: Tensor,
    known: Tensor,
    mask_len: int,
    mask_lens: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    mask_id: int,
    seed: int,
    seeds: Tensor | None,
    step: int,
    step_tensor: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out, masked = _remask_fake(ids)
    launch(
        "remask",
        ids,
        ids_out=out,
        masked=masked,
        ids=ids.contiguous(),
        logprob=logprob.contiguous(),
        known=known.contiguous(),
        batch=ids.shape[0],
        length=ids.shape[1],
        mask_len=mask_len,
        mask_len_data=contiguous(mask_lens),
        mask_len_stride=row_stride(mask_lens),
        temperature=temperature,
        temperature_data=temperature_tensor,
        mask_id=mask_id,
        **noise_arguments(noise, seed, seeds, step, step_tensor),
    )
    return out, masked


def _remask_fake(ids: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return ids.new_empty(ids.shape), ids.new_empty(ids.shape, dtype=torch.bool)


# ----------------------------------------------------------------------------------------------------------------
# registration

_OPERATOR = Operator(
    "remask(Tensor ids, Tensor logprob, Tensor known, SymInt mask_len, Tensor? mask_lens, float temperature, "
    "Tensor? temperature_tensor, SymInt mask_id, SymInt seed, Tensor? seeds, SymInt step, Tensor? step_tensor, "
    "Tensor? noise) -> (Tensor ids, Tensor masked)",
    _remask,
    _remask_fake,
)
