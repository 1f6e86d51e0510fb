"""How large values may be: what the docstring of omni_attention says of overflow."""

import pytest
import torch

from showo_ext import OmniMask, omni_attention
from showo_ext.testing import FLOAT_DTYPES


def check_the_largest_values(dtype, device, rows):
    """At the documented bound, with probabilities that exceed 1 by all that a rescale may leave them: finite."""
    columns = 128
    mask = OmniMask.full(1, rows, kv_length=columns, device=device)
    q, k = (torch.zeros(1, 1, n, 32, dtype=dtype, device=device) for n in (rows, columns))
    q[..., 0] = 1.0
    k[0, 0, 64:, 0] = 5.5  # of ln 2^8 = 5.545
    largest = min(2.0**120 / columns, torch.finfo(dtype).max)
    v = torch.full_like(k, largest)
    torch.testing.assert_close(omni_attention(q, k, v, mask, scale=1.0), torch.full_like(q, largest))
    assert not omni_attention(q, k, -v, mask, scale=1.0).isnan().any()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_largest_values(dtype):
    check_the_largest_values(dtype, "cpu", 20)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_largest_values_on_cuda(device, dtype, rows):
    check_the_largest_values(dtype, device, rows)
