"""``resample`` in plain torch: one MaskGIT step as the two operators it fuses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from showo_ext.reference.remask import remask
from showo_ext.reference.sample_tokens import sample_tokens


class ResampleOutput(NamedTuple):
    """What a step gives, all ``[B, N]``."""

    ids: Tensor  # int64, the canvas of the next step: sampled, with the masked places holding mask_id
    masked: Tensor  # bool, the places masked again
    sampled: Tensor  # int64, the whole canvas before masking: the picture, should this be the last step
    logprob: Tensor  # fp32, log-probability of each sampled token, 0 at known places


def resample(
    logits: Tensor,
    ids: Tensor,
    mask_len: int | Tensor,
    mask_id: int,
    *,
    uncond: Tensor | None = None,
    known: Tensor | None = None,
    offset: int = 0,
    guidance: float | Tensor = 0.0,
    weights: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    remask_temperature: float | Tensor = 1.0,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
    remask_noise: Tensor | None = None,
) -> ResampleOutput:
    """Fill every unknown place of ``ids [B, N]`` from ``logits [B, N, V]``, then mask the least sure ones again.

    With weights the logits are ``[K, B, N, V]``. See :func:`showo_ext.resample` for the meaning. Arguments are taken to
    be valid.
    """
    if known is None:
        known = ids != mask_id
    if ids.shape[1] == 0:
        codes, logprob = ids, ids.float()
    else:
        cond = logits.masked_fill(known.unsqueeze(-1), 0)  # logits of known places are not looked at
        free = None if uncond is None else uncond.masked_fill(known.unsqueeze(-1), 0)
        codes, logprob = sample_tokens(
            cond,
            free,
            guidance=guidance,
            weights=weights,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            step=step,
            noise=noise,
        )
    sampled = ids.where(known, codes + offset)
    logprob = logprob.masked_fill(known, 0.0)
    out, masked = remask(
        sampled, logprob, known, mask_len, remask_temperature, mask_id, seed=seed, step=step, noise=remask_noise
    )
    return ResampleOutput(out, masked, sampled, logprob)
