"""Heads of more than 128 numbers on CUDA: forward and decode in 16 bits, on a GPU if there is one, else, where it is
built, on the PTX emulator. What is not there is refused before any work.
"""

import pytest
import torch

from showo_ext import OmniMask, omni_attention
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import randn
from tests.omni_attention import test_cuda, test_decode_cuda
from tests.omni_attention.common import assert_attention, one_row_apart, operands

OPS = torch.ops.showo_ext
HALVES = (torch.float16, torch.bfloat16)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
softcaps = pytest.mark.parametrize("softcap", [None, 50.0, 1000.0])


@halves
@softcaps
def test_tiles(device, dtype, softcap):
    """Several intervals a row, rows without columns, grouped heads, a negative scale."""
    mask = test_cuda.random_mask(1, 90, 140, 2, seed=1, device=device)
    q, k, v = operands(mask, 256, dtype, heads=2, seed=5)
    test_cuda.check(q, k, v, mask, scale=-0.5 if softcap == 50.0 else 0.1, tile_rows=64, softcap=softcap)


@halves
@softcaps
@pytest.mark.parametrize("splits", [1, 3])
def test_decode(device, dtype, softcap, splits):
    mask = test_decode_cuda.random_mask(1, 5, 200, 2, seed=2, device=device)
    q, k, v = operands(mask, 256, dtype, heads=4, kv_heads=2, seed=7)
    test_decode_cuda.check(q, k, v, mask, scale=-0.2 if splits == 3 else 0.1, softcap=softcap, splits=splits)


@halves
def test_every_row_of_a_tile_counts(device, dtype):
    mask = one_row_apart(16, "full but one").to(device)
    test_decode_cuda.check(*operands(mask, 256, dtype), mask)
    mask = one_row_apart(64, "empty but one").samples(0, 8).to(device)
    test_cuda.check(*operands(mask, 256, dtype), mask, tile_rows=64)


@pytest.mark.parametrize("rows", [4, 40])
def test_sizes_in_between_are_padded(device, rows):
    """136 numbers and their 256; of columns that no row sees nothing is used."""
    mask = OmniMask(torch.tensor([3, 60], dtype=torch.int32, device=device).expand(1, rows, 1, 2).contiguous(), 80)
    q, k, v = operands(mask, 136, torch.bfloat16, heads=2, kv_heads=2)
    k[:, :, 60:], v[:, :, :3] = float("nan"), float("inf")
    out, lse = omni_attention(q, k, v, mask, return_lse=True)
    clean = [q, k.nan_to_num(0.0), v.masked_fill(v.isinf(), 0.0)]
    assert_attention(out, lse, *clean, mask, 136**-0.5)


def test_no_bank_conflicts_and_everything_is_written(emulated):
    mask = OmniMask.causal(1, 70, kv_length=140)
    omni_attention(*operands(mask, 256, torch.bfloat16), mask)
    omni_attention(*operands(mask.rows(0, 9), 256, torch.bfloat16), mask.rows(0, 9))
    for record in emulated.records():
        assert record.bank_conflicts == 0, record.kernel
        assert all(tensor["never_written"] == 0 for tensor in record.tensors), record.kernel


def test_what_is_not_there_is_refused(emulated):
    mask = OmniMask.causal(1, 40)
    q = randn(1, 1, 40, 256)
    with pytest.raises(ValueError, match=r"head_dim of 256, expected a multiple of 8 up to 128 here \(256 on the CPU"):
        omni_attention(q, q, q, mask)  # float32
    half = q.bfloat16()
    with pytest.raises(ValueError, match="on CUDA in 16 bits where no gradient is asked for"):
        omni_attention(half.requires_grad_(), half, half, mask)
    half = half.detach()
    with pytest.raises(ValueError, match="take tiles of 64 rows, got 128"):
        OPS.omni_attention_forward(half, half, half, *make_plan(mask, 128), 0.2)
    out, lse = OPS.omni_attention_forward(half, half, half, *make_plan(mask, 64), 0.2)
    with pytest.raises(NotImplementedError, match="head_dim 256, expected 32, 64, 96 or 128"):
        OPS.omni_attention_backward(out, None, half, half, half, *make_plan(mask, 0), out, lse, 0.2)
    assert not any("backward" in record.kernel for record in emulated.records())
