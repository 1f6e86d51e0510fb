"""``corrupt_tokens`` in plain torch: a random subset of exact size by sorting the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext.reference.philox import STREAM_CORRUPT, uniforms

IGNORED_LABEL = -100


def corrupt_tokens(
    ids: Tensor, mask_ratio: float | Tensor, mask_id: int, *, seed: int | Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask ``max(1, round(N * mask_ratio))`` random places of each row; see :func:`showo_ext.corrupt_tokens`.

    ``ids`` is ``[B, N]``. Returns int64 ``inputs`` and ``labels`` and bool ``masked``, all ``[B, N]``.
    Arguments are taken to be valid.
    """
    batch, length = ids.shape
    if noise is None:
        noise = uniforms(seed, STREAM_CORRUPT, 0, batch, 1, length, ids.device).squeeze(1)
    if isinstance(mask_ratio, Tensor):
        share = mask_ratio
    else:
        share = torch.tensor(mask_ratio, dtype=torch.float64, device=ids.device)
    count = (share * length).round().clamp(min=1).reshape(-1, 1)  # torch rounds half to even
    masked = noise.argsort(dim=-1, stable=True).argsort(dim=-1) < count
    return ids.masked_fill(masked, mask_id), ids.masked_fill(~masked, IGNORED_LABEL), masked
