"""rope_qkv as an operator: what torch asks of it, bad input."""

import pytest
import torch

from showo_ext import rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.testing import assert_compiles
from tests.rope_qkv.common import in_three, problem


def test_opcheck():
    qkv, positions, arguments = problem(2, 3, 4, 2, 32)
    cos, sin = rotary_tables(positions, 16)
    norm = torch.stack([arguments[n] for n in ("q_weight", "q_bias", "k_weight", "k_bias")]).requires_grad_()
    sizes = (4, 2, 1e-5)
    tensors = (qkv.requires_grad_(), None, None, cos, sin, arguments["bias"].requires_grad_(), norm)
    ops = torch.ops.showo_ext
    torch.library.opcheck(ops.rope_qkv_forward.default, (*tensors, *sizes))
    torch.library.opcheck(ops.rope_qkv_forward.default, (qkv, None, None, cos, sin, None, None, *sizes))
    plain = [None if x is None else x.detach() for x in tensors]
    grads = [torch.randn_like(x) for x in ops.rope_qkv_forward(*plain, *sizes)]
    torch.library.opcheck(ops.rope_qkv_backward.default, (*grads, *plain, *sizes))
    parts = [x.detach().requires_grad_() for x in in_three(qkv, {"num_heads": 4, "num_kv_heads": 2})]
    torch.library.opcheck(ops.rope_qkv_forward.default, (*parts, *tensors[3:], *sizes))
    torch.library.opcheck(ops.rope_qkv_backward.default, (*grads, *(x.detach() for x in parts), *plain[3:], *sizes))
    cache = (torch.zeros(2, 2, 5, 32), torch.zeros(2, 2, 5, 32))
    torch.library.opcheck(ops.rope_qkv_into_cache.default, (*plain, *cache, torch.tensor([[0, 2, 4]]), *sizes))


def test_compiles():
    qkv, positions, arguments = problem(2, 3, 4, 2, 32)
    assert_compiles(lambda x, p: rope_qkv(x * 2, p, **arguments), qkv, positions)

    def loss(x):
        q, k, v = rope_qkv(x, positions, rotary_dim=16, **arguments)
        return q.square().sum() + (k * v).sum()

    def step(x):
        k_cache, v_cache = torch.zeros(2, 2, 5, 32), torch.zeros(2, 2, 5, 32)
        q = rope_qkv_into_cache(x, positions, (k_cache, v_cache), torch.arange(3), **arguments)
        return q, k_cache + 1, v_cache

    assert_compiles(step, qkv)
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = qkv.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_autocast_changes_nothing():
    qkv, positions, arguments = problem(1, 3, 2, 2, 64, torch.bfloat16, parameters=torch.float32)
    expected = rope_qkv(qkv, positions, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = rope_qkv(qkv, positions, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert actual[0].dtype == torch.bfloat16


def test_second_derivative_is_refused():
    qkv, positions, arguments = problem(1, 3, 2, 2, 64)
    out = rope_qkv(qkv.requires_grad_(), positions, **arguments)
    (grad,) = torch.autograd.grad(out[0].square().sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": torch.zeros(2, 3, 256, dtype=torch.float64)}, TypeError, "qkv has dtype float64"),
        ({"qkv": torch.zeros(2, 3, 255)}, ValueError, r"qkv has shape \[2, 3, 255\]"),
        ({"qkv": torch.zeros(2, 3, 160)}, ValueError, "heads of 20 numbers"),
        ({"positions": torch.zeros(2, 3)}, TypeError, "positions has dtype float32"),
        ({"positions": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, r"positions has shape \[2, 4\]"),
        ({"positions": (torch.zeros(1, 3, 8), torch.zeros(1, 3, 7))}, ValueError, "sin has shape"),
        ({"positions": (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)), "rotary_dim": 8}, ValueError, "is 8, expected 16"),
        ({"positions": (torch.zeros(1, 3, 17), torch.zeros(1, 3, 17))}, ValueError, "at most 16 angles"),
        ({"rotary_dim": 7}, ValueError, "rotary_dim is 7"),
        ({"rotary_dim": 34}, ValueError, "rotary_dim is 34"),
        ({"num_kv_heads": 3}, ValueError, "num_kv_heads is 3, expected a divisor"),
        ({"num_heads": 4.0}, TypeError, "num_heads is 4.0"),
        ({"bias": torch.zeros(255)}, ValueError, r"bias has shape \[255\]"),
        ({"q_weight": torch.ones(32)}, ValueError, "k_weight is None"),
        ({"k_bias": torch.ones(32)}, ValueError, "expected q_weight and k_weight"),
        ({"q_weight": torch.ones(31), "k_weight": torch.ones(32)}, ValueError, r"q_weight has shape \[31\]"),
        ({"q_weight": torch.ones(32).half(), "k_weight": torch.ones(32)}, TypeError, "q_weight has dtype float16"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "qkv": torch.zeros(2, 3, 256),
        "positions": torch.zeros(2, 3, dtype=torch.int64),
        "num_heads": 4,
        "num_kv_heads": 2,
        **change,
    }
    with pytest.raises(error, match=message):
        rope_qkv(arguments.pop("qkv"), arguments.pop("positions"), **arguments)
