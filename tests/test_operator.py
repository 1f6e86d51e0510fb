"""What all operators have from `showo_ext._operator`: torch.func, forward-mode derivatives, a second import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from showo_ext import (
    OmniMask,
    codebook_lookup,
    corrupt_tokens,
    lfq_decode,
    lfq_encode,
    omni_attention,
    reference,
    remask,
    resample,
    rope_qkv,
    rope_qkv_into_cache,
    sample_tokens,
    vq_encode,
)
from showo_ext._operator import Operator
from showo_ext.testing import randint, randn

MASK = OmniMask.causal(2, 5)
POSITIONS = torch.arange(5)
IDS = torch.tensor([[0, 2, 1], [2, 2, 0]])


def attention(q: Tensor, k: Tensor, v: Tensor, module: object = None) -> Tensor:
    return (omni_attention if module is None else reference.omni_attention)(q, k, v, MASK).sin().sum()


def rope(x: Tensor, bias: Tensor, module: object = None) -> Tensor:
    q, k, v = (rope_qkv if module is None else reference.rope_qkv)(x, POSITIONS, num_heads=2, bias=bias)
    return (q.sin() + k.cos() + v).sum()


def lookup(codebook: Tensor, module: object = None) -> Tensor:
    return (codebook_lookup if module is None else reference.codebook_lookup)(IDS, codebook).sin().sum()


CASES = [
    (attention, [randn(2, 2, 5, 32, seed=i) for i in range(3)]),
    (rope, [randn(2, 5, 192), randn(192, seed=1)]),
    (lookup, [randn(3, 4)]),
]
cases = pytest.mark.parametrize(("function", "inputs"), CASES, ids=["attention", "rope", "lookup"])


@cases
def test_torch_func_gives_the_reference_s_gradients(function, inputs):
    places = tuple(range(len(inputs)))
    expected = torch.func.grad(partial(function, module=reference), places)(*inputs)
    value, pullback = torch.func.vjp(function, *inputs)
    for got in (
        torch.func.grad(function, places)(*inputs),
        pullback(torch.ones(())),
        torch.func.jacrev(lambda *x: function(*x)[None], places)(*inputs),
    ):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.reshape(b.shape), b)
    torch.testing.assert_close(value, function(*inputs))


@cases
def test_vmap_is_a_loop_over_samples(function, inputs):
    many = [torch.stack([x, 2 * x, -x], dim=1) for x in inputs]
    got = torch.func.vmap(torch.func.grad(function), in_dims=1)(*many)
    one_by_one = [torch.func.grad(function)(*(x[:, i] for x in many)) for i in range(3)]
    torch.testing.assert_close(got, torch.stack(one_by_one))


@cases
def test_forward_mode_is_refused(function, inputs):
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(function, tuple(inputs), tuple(torch.ones_like(x) for x in inputs))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        function(forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0])), *inputs[1:])
    with forward_ad.dual_level():  # nothing to lose: no input has a tangent
        function(*inputs)


@pytest.mark.parametrize(("function", "inputs"), CASES[:2], ids=["attention", "rope"])
def test_second_derivatives_are_refused(function, inputs):
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.func.grad(lambda *x: torch.func.grad(function)(*x).sum())(*inputs)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_calls_do_not_go_through_the_dispatcher(function, inputs, dtype, monkeypatch):
    leaves = [x.clone().requires_grad_() for x in inputs]

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            result = function(*leaves)
        return torch.autograd.grad(result, leaves)

    with torch.profiler.profile():
        through_dispatcher = gradients()
    monkeypatch.setattr(Operator, "_registered", None)
    for a, b in zip(gradients(), through_dispatcher, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        function(*leaves)


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@cases
def test_modes_and_the_profiler_see_every_call(function, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    with Seen() as seen:
        function(*leaves).backward()
    with torch.profiler.profile() as profile:
        function(*leaves).backward()
    for names in (seen.names, {event.key for event in profile.key_averages()}):
        ours = {name for name in names if name.startswith("showo_ext::")}
        assert len({name for name in ours if "backward" in name}) == 1
        assert len(ours) > 1  # and forward


class FunctionsSeen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Callable[..., object]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    """Its calls go through the `__torch_function__` of Tensor, which gives results of the same class."""


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_function_modes_subclasses_and_traces_see_every_call():
    codebook = randn(3, 4)
    with FunctionsSeen() as seen:
        codebook_lookup(IDS, codebook)
    assert torch.ops.showo_ext.codebook_lookup in seen.functions
    assert type(codebook_lookup(IDS, codebook.as_subclass(Subclass))) is Subclass
    trace = torch.jit.trace(codebook_lookup, (IDS, codebook))
    assert "showo_ext::codebook_lookup" in str(trace.graph)


def test_lazily_negated_arguments_are_resolved_first():
    codebook = randn(3, 4)
    assert torch.equal(codebook_lookup(IDS, torch._neg_view(codebook)), -codebook[IDS])


def test_operators_without_gradient_under_vmap():
    logits, codebook = randn(3, 2, 5, 7), randn(4, 7)
    ids = torch.func.vmap(lambda x: sample_tokens(x, seed=1)[0])(logits)
    assert torch.equal(ids, torch.stack([sample_tokens(x, seed=1)[0] for x in logits]))
    assert torch.equal(torch.func.vmap(vq_encode, in_dims=(0, None))(logits, codebook), vq_encode(logits, codebook))
    latents = randn(3, 2, 5, 2, 2)
    assert torch.equal(torch.func.vmap(lfq_encode)(latents), torch.stack([lfq_encode(x) for x in latents]))
    tokens, known = randint(0, 9, (3, 2, 5)), torch.zeros(2, 5, dtype=torch.bool)
    masked = torch.func.vmap(lambda x: remask(x, logits[0, :, :, 0].expand(2, 5), known, 2, 0.0, 99, seed=0)[1])(tokens)
    assert masked.sum(2).eq(2).all()


def test_every_operator_gives_shapes_on_meta():
    x, half = torch.empty(2, 5, 64, device="meta"), torch.empty(2, 5, 64, dtype=torch.bfloat16, device="meta")
    ids = torch.empty(2, 5, dtype=torch.int64, device="meta")
    q, k, v = rope_qkv((x, x, x), POSITIONS.to("meta"), num_heads=2)
    cache = torch.empty(2, 2, 9, 32, device="meta")
    assert q.shape == k.shape == v.shape == (2, 2, 5, 32)
    assert rope_qkv_into_cache((x, x, x), ids, (cache, cache), ids, num_heads=2).shape == q.shape
    mask = MASK.to("meta")
    assert omni_attention(q, k, v, mask).shape == q.shape
    with pytest.raises(TypeError, match="k has dtype float16, expected float32, the dtype of q"):
        omni_attention(q, k.half(), v, mask)
    assert vq_encode(x, x[0]).shape == ids.shape
    with pytest.raises(TypeError, match="z has dtype bfloat16, expected float32, the dtype of codebook"):
        vq_encode(half, x[0])
    assert codebook_lookup(ids, x[0]).shape == x.shape
    assert lfq_encode(cache).shape == (2, 9 * 32)
    assert lfq_decode(ids, 3, 1, 5).shape == (2, 3, 1, 5)
    assert sample_tokens(x, seed=0)[0].shape == ids.shape
    assert remask(ids, x[..., 0], ids == 0, 1, 1.0, 9, seed=0)[0].shape == ids.shape
    assert resample(x, ids, 1, 9, seed=0).ids.shape == ids.shape
    assert corrupt_tokens(ids, 0.5, 9, seed=0)[2].shape == ids.shape


def test_a_second_import_takes_the_place_of_the_first():
    script = """
import sys, torch, showo_ext
from showo_ext import lfq_encode, OmniMask
first = showo_ext
for _ in range(2):
    for name in [name for name in sys.modules if name.split(".")[0] == "showo_ext"]:
        del sys.modules[name]
    import showo_ext
assert showo_ext is not first
z = torch.randn(1, 3, 2, 2)
assert torch.equal(showo_ext.lfq_encode(z), lfq_encode(z))
q = torch.randn(1, 1, 3, 32, requires_grad=True)
showo_ext.omni_attention(q, q, q, showo_ext.OmniMask.causal(1, 3)).sum().backward()
torch.compile(showo_ext.lfq_encode, fullgraph=True, backend="aot_eager")(z)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)
