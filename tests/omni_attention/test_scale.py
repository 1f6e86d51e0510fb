"""The factor of the scores as a tensor: numbers, gradient, one compilation."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.testing import FLOAT_DTYPES, assert_within_budget, randn

MASK = OmniMask.causal(2, 9)


def inputs(dtype=torch.float32):
    return [randn(2, 2, 9, 32, seed=i).to(dtype) for i in range(3)]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_a_tensor_is_the_number_up_to_a_rounding_of_q(dtype):
    q, k, v = inputs(dtype)
    quarter, third = torch.tensor(0.25), torch.tensor(1 / 3, dtype=torch.float64)
    assert torch.equal(omni_attention(q, k, v, MASK, scale=quarter), omni_attention(q, k, v, MASK, scale=0.25))
    got = omni_attention(q, k, v, MASK, scale=third)
    oracle = reference.omni_attention((q.float() / 3).to(dtype).double(), k.double(), v.double(), MASK, scale=1.0)
    same_dtype = reference.omni_attention((q.float() / 3).to(dtype), k, v, MASK, scale=1.0)
    assert_within_budget(got, oracle, same_dtype)


def test_the_tensor_has_a_gradient():
    grads = []
    for function, dtype in ((omni_attention, torch.float32), (reference.omni_attention, torch.float64)):
        scale = torch.tensor(0.3, dtype=dtype, requires_grad=True)
        out = function(*inputs(dtype), MASK, scale=scale)
        grads.append(torch.autograd.grad((out * randn(*out.shape, seed=5).to(dtype)).sum(), scale)[0])
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=1e-6)


def test_many_scales_compile_once():
    torch.compiler.reset()
    counter = CompileCounter()
    q, k, v = inputs()
    compiled = torch.compile(lambda s: omni_attention(q, k, v, MASK, scale=s), fullgraph=True, backend=counter)
    for number in range(10):
        scale = torch.tensor(0.1 + number / 7)
        torch.testing.assert_close(compiled(scale), omni_attention(q, k, v, MASK, scale=scale))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        ("1", TypeError, "scale is '1' .str., expected a number"),
        (float("inf"), ValueError, "scale is inf, expected a finite number"),
        (torch.tensor(1), TypeError, "scale has dtype int64, expected float32 or float64"),
        (torch.ones(2), ValueError, r"scale has shape \[2\], expected \[\]"),
        (torch.ones((), device="meta"), ValueError, "scale is on meta, expected cpu"),
    ],
)
def test_bad_scales(scale, error, message):
    with pytest.raises(error, match=message):
        omni_attention(*inputs(), MASK, scale=scale)
