"""Softcap and head sizes that no kernel has: what test_omni_attention.py's search over values leaves out."""

import pytest
import torch

from showo_ext import OmniMask, omni_attention, reference
from showo_ext.ops._mask_plan import make_plan
from showo_ext.testing import assert_compiles, available_isas, poisoned, randn, use_isa

OPS = torch.ops.showo_ext
ISAS = pytest.mark.parametrize("isa", available_isas())


def inputs(dim=32, rows=20, columns=30):
    return [randn(2, heads, n, dim, seed=n).requires_grad_() for heads, n in ((4, rows), (2, columns), (2, columns))]


MASK = OmniMask.causal(2, 20, kv_length=30)


@ISAS
@pytest.mark.parametrize("rows", [2, 60])  # row by row, and in blocks
def test_a_capped_score_has_the_digits_of_tanh(isa, rows):
    """lse of a single column is its score: relative errors from scores that round to zero to those at the cap."""
    x = torch.cat([torch.logspace(-30, 4, 400, dtype=torch.float32), torch.tensor([0.0])])
    x = torch.cat([x, -x])
    x = torch.nn.functional.pad(x, (0, -x.numel() % rows)).view(-1, 1, rows, 1)
    q = torch.nn.functional.pad(x, (0, 31))
    k = torch.nn.functional.pad(torch.ones(x.size(0), 1, 1, 1), (0, 31))
    with use_isa(isa):
        mask = OmniMask.full(1, rows, kv_length=1)
        _, lse = omni_attention(q, k, k, mask, scale=1.0, softcap=20.0, return_lse=True)
    expected = (x.double() / 20).tanh().squeeze(-1) * 20
    error = (lse - expected).abs() - 4e-7 * expected.abs()  # the logarithm of a probability of 1 is exact
    assert float(error.max()) <= 0.0, float(error.max())


@ISAS
@pytest.mark.parametrize("rows", [3, 70])
def test_scores_of_any_size(isa, rows):
    """Infinite scores end at the cap, NaN stays in its row, and masked columns stay out."""
    q, k, v = randn(1, 1, rows, 32, seed=1), randn(1, 1, 90, 32, seed=2), randn(1, 1, 90, 32, seed=3)
    mask = OmniMask.sliding_window(1, rows, 40, kv_length=90)
    q[0, 0, 0] *= 1e30
    k[0, 0, -1] = float("inf")
    q[0, 0, -1], q[0, 0, 1, 3] = 1.0, float("nan")
    with use_isa(isa):
        out, lse = omni_attention(q, k, v, mask, softcap=3.0, return_lse=True)
    expected, expected_lse = reference.omni_attention(
        q.double(), k.double(), v.double(), mask, softcap=3.0, return_lse=True
    )
    for actual, oracle in ((out, expected), (lse, expected_lse)):
        assert torch.equal(actual[0, 0].isnan().nonzero()[:, 0].unique(), torch.tensor([1]))
        torch.testing.assert_close(actual.double(), oracle, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("softcap", [2.0**-126, 2.0**127])
def test_the_smallest_and_the_largest_softcap(softcap):
    tensors = [x.detach() for x in inputs()]
    expected = reference.omni_attention(*(x.double() for x in tensors), MASK, softcap=softcap)
    torch.testing.assert_close(omni_attention(*tensors, MASK, softcap=softcap).double(), expected, rtol=0, atol=1e-5)


def test_opcheck():
    arguments = (*inputs(), *make_plan(MASK, 0), 0.2, False, 5.0)
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS.omni_attention_forward.default, arguments, test_utils=cheap)
    with torch.no_grad():
        out, lse = OPS.omni_attention_forward(*arguments)
    tensors = [x.detach() for x in arguments[:3]]
    torch.library.opcheck(
        OPS.omni_attention_backward.default,
        (torch.ones_like(out), None, *tensors, *make_plan(MASK, 0), out, lse, 0.2, False, 5.0),
        test_utils=cheap,
    )


@pytest.mark.parametrize("dim", [32, 48])
def test_compiles(dim):
    def loss(q, k, v):
        return omni_attention(q, k, v, MASK, softcap=4.0).square().sum()

    q, k, v = inputs(dim)
    assert_compiles(lambda q, k, v: omni_attention(q, k, v, MASK, softcap=4.0), *(x.detach() for x in (q, k, v)))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    for actual, gradient in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected, strict=True):
        assert torch.equal(actual, gradient)


@pytest.mark.parametrize("order", ["bhsd", "bshd"])
def test_a_padded_head_is_that_of_a_wider_model(order):
    """Values, memory order and the scale of the size that was given."""
    q, k, v = (x.detach() for x in inputs(40))
    if order == "bshd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    out = omni_attention(q, k, v, MASK)
    wide = [torch.nn.functional.pad(x, (0, 24)) for x in (q, k, v)]
    assert torch.equal(out, omni_attention(*wide, MASK, scale=40**-0.5)[..., :40])
    assert (out.stride(1) < out.stride(2)) == (order == "bshd")


def test_a_padded_head_on_meta_tensors():
    q = poisoned((2, 4, 20, 40), device="meta")
    out, lse = omni_attention(q, q, q, OmniMask.causal(2, 20, device="meta"), return_lse=True)
    assert (out.shape, lse.shape) == (q.shape, (2, 4, 20))


@pytest.mark.parametrize(
    ("softcap", "error", "message"),
    [
        (0.0, ValueError, "softcap is 0.0, expected None or a number"),
        (-1, ValueError, "softcap is -1.0, expected None or a number"),
        (float("nan"), ValueError, "softcap is nan, expected"),
        (float("inf"), ValueError, "softcap is inf, expected"),
        ("5", TypeError, "softcap is '5' .str., expected a number"),
        (torch.tensor(5.0), TypeError, "softcap is tensor.* expected a number"),
    ],
)
def test_bad_softcaps(softcap, error, message):
    with pytest.raises(error, match=message):
        omni_attention(*inputs(), MASK, softcap=softcap)
