"""How large values may be: what the docstring of omni_attention says of overflow."""

import pytest
import torch

from showo_ext import OmniMask, omni_attention
from showo_ext.testing import FLOAT_DTYPES

COLUMNS = 128


def check_the_largest_values(dtype, device, rows, largest):
    """Averages of values that are all the same, with probabilities that exceed 1 by all that a rescale may leave."""
    mask = OmniMask.full(1, rows, kv_length=COLUMNS, device=device)
    q, k = (torch.zeros(1, 1, n, 32, dtype=dtype, device=device) for n in (rows, COLUMNS))
    q[..., 0] = 1.0
    k[0, 0, 64:, 0] = 5.5  # of ln 2^8 = 5.545
    v = torch.full_like(k, largest)
    torch.testing.assert_close(omni_attention(q, k, v, mask, scale=1.0), torch.full_like(q, largest))
    torch.testing.assert_close(omni_attention(q, k, -v, mask, scale=1.0), torch.full_like(q, -largest))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_largest_values(dtype):
    """In float32 a little less, lest the last rounding end in infinity."""
    largest = torch.finfo(dtype).max
    check_the_largest_values(dtype, "cpu", 20, largest * (1 - 2**-20) if dtype == torch.float32 else largest)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_largest_values_on_cuda(device, dtype, rows):
    """In float32 those at the documented bound."""
    largest = 2.0**120 / COLUMNS if dtype == torch.float32 else torch.finfo(dtype).max
    check_the_largest_values(dtype, device, rows, largest)
