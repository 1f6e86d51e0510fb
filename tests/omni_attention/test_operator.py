"""omni_attention as an operator: what torch asks of it, shapes, bad input."""

import pytest
import torch

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import FLOAT_DTYPES, assert_compiles, randn
from tests.omni_attention.common import random_mask

OPS = torch.ops.showo_ext

# ---- torch -----------------------------------------------------------------------------------------------------------


def operands(dtype=torch.float32, requires_grad=True):
    q, k, v = (randn(2, h, n, 32, dtype=dtype, seed=n) for h, n in ((4, 20), (2, 30), (2, 30)))
    return [x.requires_grad_(requires_grad) for x in (q, k, v)], random_mask(2, 20, 30, 2, seed=2)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_opcheck(dtype):
    (q, k, v), mask = operands(dtype)
    if dtype != torch.float32:
        cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(OPS.omni_attention_forward.default, (q, k, v, *make_plan(mask, 0), 0.2), test_utils=cheap)
        return
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(OPS.omni_attention_forward.default, (*strided, *make_plan(mask, 0), 0.2))
    with torch.no_grad():
        out, lse = OPS.omni_attention_forward(q, k, v, *make_plan(mask, 0), 0.2)
    q, k, v = (x.detach() for x in (q, k, v))
    for dlse in (None, torch.ones_like(lse)):
        arguments = (torch.ones_like(out), dlse, q, k, v, *make_plan(mask, 0), out, lse, 0.2)
        torch.library.opcheck(OPS.omni_attention_backward.default, arguments)


def test_compiles():
    (q, k, v), mask = operands()

    def loss(q, k, v, mask):
        out, lse = omni_attention(q, k, v, mask, return_lse=True)
        return out.square().sum() + lse.masked_fill(lse.isinf(), 0.0).sum()

    def forward(q, k, v, mask):
        return omni_attention(q, k, v, mask.rows(0, 20), scale=0.3)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(q, k, v, mask), (q, k, v))
    for actual, gradient in zip(torch.autograd.grad(compiled(q, k, v, mask), (q, k, v)), expected, strict=True):
        assert torch.equal(actual, gradient)
    assert_compiles(forward, *(x.detach() for x in (q, k, v)), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_inputs(dtype):
    (q, k, v), mask = operands()
    with torch.autocast("cpu", dtype=dtype):
        out = omni_attention(q, k.to(dtype), v, mask)
    assert out.dtype == dtype
    assert torch.equal(out, omni_attention(q.to(dtype), k.to(dtype), v.to(dtype), mask))
    (dq,) = torch.autograd.grad(out.float().sum(), q)
    assert dq.dtype == torch.float32

    def step(q, k, v):
        with torch.autocast("cpu", dtype=dtype):
            return omni_attention(q, k, v, mask)

    assert_compiles(step, q, k, v)


def test_no_second_derivative():
    (q, k, v), mask = operands()
    (dq,) = torch.autograd.grad(omni_attention(q, k, v, mask).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dq.sum().backward()


def test_gradient_of_lse_alone():
    (q, k, v), mask = operands()
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
    grads = []
    for function, inputs in ((omni_attention, (q, k, v)), (reference.omni_attention, (q64, k64, v64))):
        lse = function(*inputs, mask, return_lse=True)[1]
        grads.append(torch.autograd.grad(lse[lse.isfinite()].sum(), inputs[:2]))
    for a, o in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), o, rtol=1e-5, atol=1e-6)


def test_meta_tensors_give_shapes():
    q, k = torch.empty(2, 4, 10, 64, device="meta"), torch.empty(2, 2, 12, 64, device="meta")
    out, lse = omni_attention(q, k, k, OmniMask.causal(2, 10, kv_length=12, device="meta"), return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (2, 4, 10)
    assert out.device.type == "meta"


@pytest.mark.parametrize("shape", [(0, 2, 5, 64), (2, 0, 5, 64), (2, 2, 0, 64)])
def test_empty_tensors(shape):
    q = torch.zeros(shape, requires_grad=True)
    k = torch.zeros(shape[0], shape[1], 7, 64, requires_grad=True)
    out, lse = omni_attention(q, k, k, OmniMask.full(shape[0], shape[2], kv_length=7), return_lse=True)
    assert out.shape == shape
    assert lse.shape == shape[:3]
    dq, dk = torch.autograd.grad(out.sum(), (q, k))
    assert dq.shape == shape
    assert bool((dk == 0).all())


# ---- bad input -------------------------------------------------------------------------------------------------------

GOOD = {"q": (2, 4, 10, 64), "k": (2, 2, 12, 64), "v": (2, 2, 12, 64)}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"q": torch.zeros(2, 4, 10, 64, dtype=torch.float64)}, TypeError, "q has dtype float64, expected float32"),
        ({"k": torch.zeros(2, 2, 12, 64, dtype=torch.int64)}, TypeError, "k has dtype int64, expected float32"),
        ({"v": torch.zeros(2, 2, 12, 64, dtype=torch.bfloat16)}, TypeError, "v has dtype bfloat16, expected"),
        ({"q": [1.0]}, TypeError, "q has type list, expected a torch.Tensor"),
        ({"q": torch.zeros(4, 10, 64)}, ValueError, r"q has shape \[4, 10, 64\], expected \[B, heads"),
        ({"k": torch.zeros(2, 2, 12, 64, device="meta")}, ValueError, "k is on meta, expected cpu, the device of q"),
        ({"k": torch.zeros(2, 2, 64, 12).transpose(2, 3)}, ValueError, "k has strides .*, expected a contiguous"),
        ({"q": torch.zeros(2, 4, 10, 44)}, ValueError, "q has a head_dim of 44, expected a multiple of 8 up to 256"),
        ({"q": torch.zeros(2, 4, 10, 264)}, ValueError, "q has a head_dim of 264, expected a multiple of 8 up to 256"),
        ({"q": torch.zeros(2, 4, 10, 48)}, ValueError, r"k has shape .*, expected \[2, heads, length, 48\]"),
        ({"k": torch.zeros(1, 2, 12, 64)}, ValueError, r"k has shape .*, expected \[2, heads, length, 64\]"),
        ({"k": torch.zeros(2, 2, 12, 32)}, ValueError, r"k has shape .*, expected \[2, heads, length, 64\]"),
        ({"v": torch.zeros(2, 2, 11, 64)}, ValueError, "v has shape .*, the shape of k"),
        ({"k": torch.zeros(2, 3, 12, 64), "v": torch.zeros(2, 3, 12, 64)}, ValueError, "expected a divisor of q's 4"),
        ({"k": torch.zeros(2, 0, 12, 64), "v": torch.zeros(2, 0, 12, 64)}, ValueError, "expected a divisor of q's 4"),
        ({"mask": torch.ones(2, 10, 12, dtype=torch.bool)}, TypeError, "mask has type Tensor, expected an OmniMask"),
        ({"mask": OmniMask.full(2, 11, kv_length=12)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(2, 10, kv_length=13)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(3, 10, kv_length=12)}, ValueError, "mask has shape"),
        ({"mask": OmniMask.full(2, 10, kv_length=12, device="meta")}, ValueError, "mask is on meta, expected cpu"),
        ({"mask": OmniMask(torch.tensor([0, 13], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
        ({"mask": OmniMask(torch.tensor([-1, 3], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
        ({"mask": OmniMask(torch.tensor([5, 3], dtype=torch.int32).expand(2, 10, 1, 2), 12)}, ValueError, "intervals"),
    ],
)
def test_errors_name_the_argument(changes, error, match):
    arguments = {name: torch.zeros(shape) for name, shape in GOOD.items()}
    arguments["mask"] = OmniMask.full(2, 10, kv_length=12)
    omni_attention(**arguments)
    with pytest.raises(error, match=match):
        omni_attention(**(arguments | changes))
