"""``remask`` in plain torch: confidences in fp64, two stable sorts."""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext.reference.philox import STREAM_REMASK, uniforms


def remask(
    ids: Tensor,
    logprob: Tensor,
    known: Tensor,
    mask_len: int | Tensor,
    temperature: float | Tensor,
    mask_id: int,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask the ``mask_len`` least confident unknown places of each row again; see :func:`showo_ext.remask`.

    ``ids``, ``logprob``, ``known`` are ``[B, N]``. Returns int64 ``ids`` and bool ``masked``, both ``[B, N]``.
    Arguments are taken to be valid.
    """
    batch, length = ids.shape
    if noise is None:
        noise = uniforms(seed, STREAM_REMASK, step, batch, 1, length, ids.device).squeeze(1)
    confidence = logprob.double() - float(temperature) * (-noise.double().log()).log()
    order = confidence.masked_fill(known, 0.0).argsort(dim=-1, stable=True)
    order = order.gather(-1, known.gather(-1, order).int().argsort(dim=-1, stable=True))  # known places last
    unknown = (~known).sum(-1, keepdim=True)
    count = torch.as_tensor(mask_len, device=ids.device).reshape(-1, 1).clamp(min=0).minimum(unknown)
    masked = order.argsort(dim=-1) < count
    return ids.masked_fill(masked, mask_id), masked
