"""lfq_encode, lfq_decode: lookup-free quantization, where the signs of a latent's channels are its code.

Channel 0 is the most significant bit; a channel counts as 1 if it is greater than 0, so zero, minus zero and NaN
count as 0 (MAGVIT-v2, arXiv 2310.05737, as used by Show-o). Neither has a gradient: the straight-through estimator is
the model's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo_ext._checks import FLOAT_DTYPES, check_int, check_shape, check_tensor
from showo_ext._native import launch
from showo_ext._operator import Operator

MAX_BITS = 62

# ---------------------------------------------------------------- public functions


def lfq_encode(z: Tensor, *, offset: int = 0) -> Tensor:
    """Code ids of latents.

    Args:
        z: [B, bits, H, W], fp32, fp16 or bf16, any strides, 1 to 62 bits.
        offset: added to every id (the place of the first code in a vocabulary).

    Returns:
        int64 [B, H * W], each id in [offset, offset + 2**bits).
    """
    check_tensor("z", z, FLOAT_DTYPES)
    check_shape("z", z, "B", "bits", "H", "W")
    check_int("bits", z.shape[1], 1, MAX_BITS)
    return _ENCODE(z.detach(), _check_offset(offset))


def lfq_decode(
    ids: Tensor, bits: int, height: int, width: int, *, offset: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The codebook entries of ids: +1 or -1 per bit.

    Args:
        ids: int64 [B, height * width].
        bits: channels of an entry, 1 to 62.
        offset: subtracted from every id first.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        [B, bits, height, width], contiguous.

    Raises:
        ValueError: on the CPU, if an id is outside [offset, offset + 2**bits). On a CUDA device, where looking would
            stall the stream, the entry of such an id is NaN instead.
    """
    check_tensor("ids", ids, (torch.int64,))
    bits = check_int("bits", bits, 1, MAX_BITS)
    height, width = check_int("height", height, 0), check_int("width", width, 0)
    check_shape("ids", ids, "B", height * width)
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype is {dtype}, expected float32, float16 or bfloat16")
    return _DECODE(ids, bits, height, width, _check_offset(offset), dtype)


def _check_offset(offset: int) -> int:
    return check_int("offset", offset, -(2**62), 2**62)  # an id, which is below 2**62, plus offset fits int64


# ---------------------------------------------------------------- implementations


def _launch(name: str, z: Tensor, ids: Tensor, offset: int) -> None:
    batch, bits, height, width = z.shape
    stride_batch, stride_bit, stride_row, stride_column = z.stride()
    launch(
        name,
        z,
        z=z,
        ids=ids,
        dtype=z.dtype,
        batch=batch,
        bits=bits,
        height=height,
        width=width,
        stride_batch=stride_batch,
        stride_bit=stride_bit,
        stride_row=stride_row,
        stride_column=stride_column,
        offset=offset,
    )


def _encode(z: Tensor, offset: int) -> Tensor:
    ids = _encode_fake(z, offset)
    _launch("lfq_encode", z, ids, offset)
    return ids


def _decode(ids: Tensor, bits: int, height: int, width: int, offset: int, dtype: torch.dtype) -> Tensor:
    z = _decode_fake(ids, bits, height, width, offset, dtype)
    _launch("lfq_decode", z, ids.contiguous(), offset)
    return z


# ---------------------------------------------------------------- fake: allocates, for real tensors too


def _encode_fake(z: Tensor, offset: int) -> Tensor:
    return torch.empty((z.shape[0], z.shape[2] * z.shape[3]), dtype=torch.int64, device=z.device)


def _decode_fake(ids: Tensor, bits: int, height: int, width: int, offset: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((ids.shape[0], bits, height, width), dtype=dtype, device=ids.device)


# ---------------------------------------------------------------- registration

_ENCODE = Operator("lfq_encode(Tensor z, SymInt offset) -> Tensor", _encode, _encode_fake)
_DECODE = Operator(
    "lfq_decode(Tensor ids, int bits, SymInt height, SymInt width, SymInt offset, ScalarType dtype) -> Tensor",
    _decode,
    _decode_fake,
)
