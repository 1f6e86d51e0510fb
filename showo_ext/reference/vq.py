"""Nearest codebook entry, and lookup, in plain torch."""

import torch
from torch import Tensor


def vq_encode(z: Tensor, codebook: Tensor) -> Tensor:
    """int64 [...] from z [..., D] and codebook [K, D]: lowest index among the smallest squared distances.

    Computes in fp32 (fp64 stays fp64); a distance of NaN counts as infinite.
    """
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    rows, entries = z.reshape(-1, z.shape[-1]).to(dtype), codebook.to(dtype)
    if rows.shape[0] == 0:
        return torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
    # A few rows at a time: the differences are [rows, K, D].
    chunks = rows.split(max(1, 2**24 // entries.numel()))
    distances = [(chunk[:, None, :] - entries).square().sum(-1) for chunk in chunks]
    ids = [d.where(~d.isnan(), torch.inf).argmin(1) for d in distances]
    return torch.cat(ids).reshape(z.shape[:-1])


def codebook_lookup(ids: Tensor, codebook: Tensor) -> Tensor:
    """[..., D] from int64 ids [...] and codebook [K, D]."""
    if bool(((ids < 0) | (ids >= codebook.shape[0])).any()):
        raise ValueError(f"ids has an entry out of range, expected values in [0, {codebook.shape[0]})")
    return codebook[ids]
