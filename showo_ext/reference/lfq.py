"""Lookup-free quantization in plain torch."""

import torch
from torch import Tensor


def lfq_encode(z: Tensor, *, offset: int = 0) -> Tensor:
    """int64 [B, H * W] from [B, bits, H, W]: channel 0 is the most significant bit, a bit is z > 0."""
    bits = z.shape[1]
    powers = torch.tensor([2 ** (bits - 1 - c) for c in range(bits)], dtype=torch.int64, device=z.device)
    ids = ((z > 0) * powers[None, :, None, None]).sum(dim=1)
    return ids.flatten(1) + offset


def lfq_decode(
    ids: Tensor, bits: int, height: int, width: int, *, offset: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[B, bits, height, width] of +1 and -1 from int64 [B, height * width]."""
    codes = ids - offset
    if bool(((codes < 0) | (codes >= 2**bits)).any()):
        raise ValueError(f"ids has an entry out of range, expected values in [{offset}, {offset + 2**bits})")
    shifts = torch.arange(bits - 1, -1, -1, dtype=torch.int64, device=ids.device)
    signs = (codes[:, None, :] >> shifts[None, :, None] & 1) * 2 - 1  # [B, bits, height * width]
    return signs.to(dtype).unflatten(2, (height, width))
