"""rope_qkv against fp64 and plain torch: the CPU code paths, and the CUDA kernels on a GPU or the PTX emulator.

The rest of the operator: test_operator.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import omni_attention, reference, rope_qkv, rope_qkv_into_cache, rotary_tables
from showo_ext.mask import OmniMask
from showo_ext.testing import (
    ENOUGH_ROWS,
    FLOAT_DTYPES,
    assert_within_budget,
    available_isas,
    guarded,
    inside_larger,
    poisoned,
    randn,
    use_isa,
    use_threads,
)
from tests.rope_qkv.common import in_three, problem

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
NAMES = ("q", "k", "v")


@pytest.fixture
def device(any_device):
    return any_device


def doubled(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def check(qkv, positions, arguments, *, gradients=True, rms=False, separate=False):
    """Results, and gradients of every tensor given, against fp64 and plain torch in the same dtype."""
    names = ["qkv", *(n for n, value in arguments.items() if isinstance(value, torch.Tensor))]
    rotary_dim = arguments.get("rotary_dim", qkv.shape[2] // (arguments["num_heads"] + 2 * arguments["num_kv_heads"]))
    tables = rotary_tables(positions, rotary_dim)
    exact_tables = tuple(table.double() for table in tables)

    inputs = {"qkv": qkv, **arguments}
    results = []
    for function, rotary, convert in (
        (rope_qkv, positions, lambda x: x),
        (reference.rope_qkv, exact_tables, doubled),
        (reference.rope_qkv, positions, lambda x: x),
    ):
        leaves = {n: convert(v).detach().requires_grad_() if n in names else v for n, v in inputs.items()}
        projection = in_three(leaves["qkv"], arguments) if separate else leaves["qkv"]
        out = function(projection, rotary, **{n: v for n, v in leaves.items() if n != "qkv"})
        grads = ()
        if gradients:
            cotangents = [randn(*x.shape, dtype=qkv.dtype, seed=50 + i) for i, x in enumerate(out)]
            cotangents = [c.to(device=x.device, dtype=x.dtype) for c, x in zip(cotangents, out, strict=True)]
            grads = torch.autograd.grad(out, [leaves[n] for n in names], cotangents)
        results.append(([x.detach() for x in out], grads))
    (out, grads), (exact, exact_grads), (peer, peer_grads) = results
    for name, *three in zip(NAMES, out, exact, peer, strict=True):
        assert three[0].dtype == qkv.dtype
        assert_within_budget(*three, what=name, rms=rms)
    for name, *three in zip(names if gradients else [], grads, exact_grads, peer_grads, strict=True):
        assert_within_budget(*three, what=f"gradient of {name}", rms=rms or name != "qkv")


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 20),
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 9),
    dim=st.sampled_from([32, 64, 96, 128]),
    half=st.integers(0, 64),
    dtype=st.sampled_from(FLOAT_DTYPES),
    wide_parameters=st.booleans(),
    separate=st.booleans(),
    isa=st.sampled_from(available_isas()),
    seed=st.integers(0, 99),
)
def test_values_and_gradients(batch, length, groups, kv_heads, dim, half, dtype, wide_parameters, separate, isa, seed):
    kind = torch.float32 if wide_parameters else dtype
    batch = max(batch, ENOUGH_ROWS // (length * kv_heads))  # rows of k
    qkv, positions, arguments = problem(batch, length, groups * kv_heads, kv_heads, dim, dtype, seed, parameters=kind)
    with use_isa(isa):
        check(qkv, positions, {**arguments, "rotary_dim": 2 * min(half, dim // 2)}, rms=True, separate=separate)


@dtypes
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize(
    "rotary", ["half", "odd", *(pytest.param(r, marks=pytest.mark.kernels) for r in ("none", "all"))]
)
def test_every_kernel(device, dtype, dim, rotary):
    # "odd": halves do not fall into vectors, so that single elements are read; splits and groups are not full
    rotary_dim = {"none": 0, "half": dim // 2, "all": dim, "odd": 22}[rotary]
    qkv, positions, arguments = problem(2, 3, 6, 3, dim, dtype, device=device)
    check(qkv, positions, {**arguments, "rotary_dim": rotary_dim})


@dtypes
def test_more_heads_than_one_block_and_several_rows_of_a_chunk(device, dtype):
    qkv, positions, arguments = problem(2, 90, 30, 2, 32, dtype, device=device)
    check(qkv, positions, {**arguments, "rotary_dim": 16})


@dtypes
@pytest.mark.parametrize(("batch", "length", "heads", "rotary_dim"), [(7, 1000, 1, 16), (2400, 3, 3, 22)])
def test_chunks_of_several_tiles_and_samples(device, dtype, batch, length, heads, rotary_dim):
    """A CUDA block has more rows than it keeps tables for; with single elements its heads take more than one pass."""
    qkv, positions, arguments = problem(batch, length, heads, heads, 32, dtype, device=device)
    arguments["rotary_dim"] = rotary_dim
    check(qkv, positions, arguments)
    q, k, v = rope_qkv(qkv, positions, **arguments)
    slots = torch.rand(batch, length + 2, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :length]
    cache = (torch.zeros(batch, heads, length + 2, 32, dtype=dtype, device=device) for _ in range(2))
    cache, slots = tuple(cache), slots.to(device)
    assert torch.equal(rope_qkv_into_cache(qkv, positions, cache, slots, **arguments), q)
    rows = slots[:, None, :, None].expand_as(k)
    assert all(torch.equal(into.gather(2, rows), new) for into, new in zip(cache, (k, v), strict=True))


@dtypes
def test_optional_parameters(device, dtype):
    qkv, positions, arguments = problem(1, 5, 4, 2, 64, dtype, device=device)
    for left_out in ({"bias"}, {"q_bias", "k_bias"}, {"k_bias"}, {"q_weight", "q_bias", "k_weight", "k_bias"}):
        kept = {n: v for n, v in arguments.items() if n not in left_out}
        check(qkv, positions, {**kept, "rotary_dim": 32})
    plain = {"num_heads": 4, "num_kv_heads": 2}
    check(qkv, positions, plain)
    q, k, v = rope_qkv(qkv, positions, **plain, rotary_dim=0)  # nothing to do but to split
    expected = qkv.unflatten(-1, (8, 64)).transpose(1, 2).split([4, 2, 2], dim=1)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), expected, strict=True))


@dtypes
@pytest.mark.parametrize("rotary_dim", [32, 22])  # vectors, single elements
def test_three_projections(device, dtype, rotary_dim):
    qkv, positions, arguments = problem(2, 5, 6, 2, 64, dtype, device=device)
    arguments["rotary_dim"] = rotary_dim
    check(qkv, positions, arguments, separate=True)
    parts = in_three(qkv, arguments)
    expected = rope_qkv(qkv, positions, **arguments)
    strided = tuple(inside_larger(x, pad=8, offset=8) for x in parts)
    for given_parts in (parts, strided, tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in parts)):
        assert all(torch.equal(a, b) for a, b in zip(rope_qkv(given_parts, positions, **arguments), expected))
    cache = tuple(torch.zeros(2, 2, 5, 64, dtype=dtype, device=device) for _ in range(2))
    slots = torch.arange(5, device=device)
    got = rope_qkv_into_cache(parts, positions, cache, slots, **arguments)
    assert all(torch.equal(a, b) for a, b in zip((got, *cache), expected, strict=True))


def test_gradients_of_three_projections_are_contiguous():
    qkv, positions, arguments = problem(2, 5, 4, 2, 64)
    parts = tuple(x.requires_grad_() for x in in_three(qkv, arguments))
    grads = torch.autograd.grad(sum(x.sum() for x in rope_qkv(parts, positions, **arguments)), parts)
    assert all(x.is_contiguous() for x in grads)


def test_three_projections_that_do_not_fit():
    qkv, positions, arguments = problem(2, 5, 4, 2, 64)
    q, k, v = in_three(qkv, arguments)
    for parts, error, message in (
        ((q, k), ValueError, "qkv has 2 parts, expected one tensor or"),
        ((q, k[..., :64], v), ValueError, r"k of qkv has shape \[2, 5, 64\], expected \[2, 5, 128\]"),
        ((q, k, v[:, :4]), ValueError, r"v of qkv has shape \[2, 4, 128\], expected \[2, 5, 128\]"),
        ((q[0], k, v), ValueError, r"q of qkv has shape \[5, 256\], expected \[B, S, 4 \* head_dim\]"),
        ((q, k.half(), v), TypeError, "k of qkv"),
        ((q, None, v), TypeError, "k of qkv"),
    ):
        with pytest.raises(error, match=message):
            rope_qkv(parts, positions, **arguments)


def test_shared_positions_and_tables(device):
    qkv, _, arguments = problem(3, 7, 4, 4, 64, device=device)
    positions = torch.arange(10, 17, device=device)
    expected = rope_qkv(qkv, positions.expand(3, 7), rotary_dim=32, **arguments)
    for given_positions in (positions, positions[None], rotary_tables(positions, 32)):
        actual = rope_qkv(qkv, given_positions, rotary_dim=32, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@dtypes
def test_any_strides(device, dtype):
    qkv, positions, arguments = problem(2, 5, 4, 2, 64, dtype, device=device)
    expected = rope_qkv(qkv, positions, rotary_dim=32, **arguments)
    for offset in (1, 8):
        for last_dim_contiguous in (True, False):
            view = inside_larger(qkv, pad=8, offset=offset, last_dim_contiguous=last_dim_contiguous)
            strided = {
                n: inside_larger(x, offset=1, last_dim_contiguous=last_dim_contiguous) if torch.is_tensor(x) else x
                for n, x in arguments.items()
            }
            actual = rope_qkv(view, inside_larger(positions), rotary_dim=32, **strided)
            for name, a, b in zip(NAMES, actual, expected, strict=True):
                torch.testing.assert_close(
                    a,
                    b,
                    msg=name,
                    **({"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}),
                )
    leaf = qkv.clone().requires_grad_()
    q, k, v = rope_qkv(leaf, positions, rotary_dim=32, **arguments)
    (q.sum() + k.sum() + v.sum()).backward()  # gradients with strides of zero
    assert bool(leaf.grad.isfinite().all())


def test_results_suit_attention():
    qkv, positions, arguments = problem(2, 9, 4, 2, 64)
    q, k, v = rope_qkv(qkv, positions, **arguments)
    assert q.transpose(1, 2).is_contiguous()
    assert k.is_contiguous()
    assert v.is_contiguous()
    out = omni_attention(q, k, v, OmniMask.causal(2, 9))
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


@dtypes
def test_into_cache(device, dtype):
    qkv, positions, arguments = problem(2, 6, 4, 2, 64, dtype, device=device)
    q, k, v = rope_qkv(qkv, positions, rotary_dim=32, **arguments)
    for slots in (torch.tensor([9, 0, 3, 4, 5, 1]), torch.tensor([[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]])):
        slots = slots.to(device)
        cache = tuple(
            inside_larger(poisoned((2, 2, 10, 64), dtype=dtype, device=device), pad=8, offset=8) for _ in range(2)
        )
        got = rope_qkv_into_cache(qkv, positions, cache, slots, rotary_dim=32, **arguments)
        assert torch.equal(got, q)
        for into, new in zip(cache, (k, v), strict=True):
            expected = poisoned((2, 2, 10, 64), dtype=dtype, device=device)
            for b, row in enumerate(slots.expand(2, 6).tolist()):
                expected[b, :, row] = new[b]
            assert torch.equal(into.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_q_alone_and_k_and_v_alone(device, dtype):
    """Both calls together give the bits of one call, forward and backward, into a cache too."""
    q, k, v = (randn(2, 6, h * 64, dtype=dtype, seed=h, device=device).requires_grad_() for h in (4, 2, 2))
    norm = {f"{n}_weight": randn(64, seed=i, device=device).requires_grad_() for i, n in enumerate("qk")}
    positions = torch.arange(6, device=device)
    whole = rope_qkv((q, k, v), positions, num_heads=4, num_kv_heads=2, **norm)
    own_q, *absent = rope_qkv((q, q[..., :0], q[..., :0]), positions, num_heads=4, num_kv_heads=0, **norm)
    assert [x.shape for x in absent] == [(2, 0, 6, 64)] * 2
    with pytest.raises(ValueError, match="num_kv_heads is 0, expected heads"):
        rope_qkv((q, k, v), positions, num_heads=0)
    with pytest.raises(ValueError, match="num_heads is 0, expected an int"):
        rope_qkv(q, positions, num_heads=0)
    with pytest.raises(ValueError, match="k of qkv has shape"):
        rope_qkv((q, k, v), positions, num_heads=4, num_kv_heads=0)
    _, own_k, own_v = rope_qkv((k[..., :0], k, v), positions, num_heads=0, num_kv_heads=2, **norm)
    parts = (own_q, own_k, own_v)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    leaves = [q, k, v, *norm.values()]
    expected, got = (torch.autograd.grad([x.square().sum() for x in out], leaves) for out in (whole, parts))
    assert all(torch.equal(a, b) for a, b in zip(expected[:3], got[:3], strict=True))
    for a, b in zip(expected[3:], got[3:], strict=True):  # summed over other chunks of rows
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    cache = [torch.zeros(2, 2, 6, 64, dtype=dtype, device=device) for _ in range(2)]
    with torch.no_grad():
        arguments = {"num_heads": 0, "num_kv_heads": 2, **norm}
        rope_qkv_into_cache((k[..., :0], k, v), positions, tuple(cache), positions, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(cache, whole[1:], strict=True))


def test_slots_out_of_range(device, request):
    qkv, positions, arguments = problem(1, 3, 2, 2, 32, device=device)
    cache = (poisoned((1, 2, 4, 32), device=device), poisoned((1, 2, 4, 32), device=device))
    slots = torch.tensor([4, 2, -1], device=device)
    if request.node.callspec.params["any_device"] == "cpu":
        with pytest.raises(ValueError, match="slots holds 4, expected 0 to 3"):
            rope_qkv_into_cache(qkv, positions, cache, slots, **arguments)
        assert bool(cache[0].isnan().all() and cache[1].isnan().all())
        return
    rope_qkv_into_cache(qkv, positions, cache, slots, **arguments)
    for into in cache:
        assert bool(into[:, :, 2].isfinite().all())
        assert bool(into[:, :, [0, 1, 3]].isnan().all())


def test_cache_form_refuses_gradients():
    qkv, positions, arguments = problem(1, 2, 2, 2, 32)
    cache, slots = (torch.zeros(1, 2, 4, 32), torch.zeros(1, 2, 4, 32)), torch.arange(2)
    with pytest.raises(RuntimeError, match="has no gradient"):
        rope_qkv_into_cache(qkv.requires_grad_(), positions, cache, slots, **arguments)
    with torch.no_grad():
        rope_qkv_into_cache(qkv, positions, cache, slots, **arguments)


def test_same_bits_on_any_number_of_threads():
    results = []
    for count in (1, 2, 5):
        qkv, positions, arguments = problem(2, 100, 12, 12, 64)
        leaves = [qkv.requires_grad_(), arguments["bias"].requires_grad_(), arguments["q_weight"].requires_grad_()]
        with use_threads(count):
            out = rope_qkv(qkv, positions, rotary_dim=32, **arguments)
            results.append((*out, *torch.autograd.grad([x.square().sum() for x in out], leaves)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_writes_nothing_else():
    qkv, positions, arguments = problem(2, 5, 4, 2, 64)
    zones = {n: guarded(x) for n, x in {"qkv": qkv, **arguments}.items() if torch.is_tensor(x)}
    copies = {n: zone.tensor.clone() for n, zone in zones.items()}
    cache = (guarded(torch.zeros(2, 2, 5, 64)), guarded(torch.zeros(2, 2, 5, 64)))
    given_arguments = {**arguments, **{n: z.tensor for n, z in zones.items() if n != "qkv"}}
    slots = torch.tensor([4, 0, 1, 2, 3])
    rope_qkv_into_cache(zones["qkv"].tensor, positions, tuple(c.tensor for c in cache), slots, **given_arguments)
    for zone in (*zones.values(), *cache):
        zone.check()
    assert all(torch.equal(zones[n].tensor, copies[n]) for n in zones)


def test_large_positions_are_exact():
    positions = torch.tensor([[0, 1, 4095, 1_000_003]])
    cos, sin = rotary_tables(positions, 64)
    exponent = torch.arange(32, dtype=torch.float32) * (2 / 64)
    frequency = torch.exp(exponent * -torch.tensor(10000.0, dtype=torch.float64).log().item())
    angles = (positions[..., None].float() * frequency).double()
    torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=1e-6)


def test_empty(device):
    for shape in ((0, 4, 256), (2, 0, 256)):
        qkv = torch.zeros(shape, device=device, requires_grad=True)
        bias = torch.zeros(256, device=device, requires_grad=True)
        positions = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        q, k, v = rope_qkv(qkv, positions, num_heads=2, num_kv_heads=1, bias=bias)
        assert q.shape == (shape[0], 2, shape[1], 64)
        assert k.shape == v.shape == (shape[0], 1, shape[1], 64)
        (q.sum() + k.sum() + v.sum()).backward()
        assert bias.grad.abs().sum() == 0


def norm_parameters(dtype):
    return {name: randn(32, dtype=dtype, seed=i) for i, name in enumerate(("q_weight", "q_bias", "k_weight", "k_bias"))}


def example_rope_qkv(package, dtype):
    qkv, bias = (randn(*shape, dtype=dtype).requires_grad_() for shape in ((1, 5, 192), (192,)))
    norm = {name: x.requires_grad_() for name, x in norm_parameters(dtype).items()}
    out = package.rope_qkv(qkv, torch.arange(5), num_heads=2, bias=bias, **norm)
    return [*out, *torch.autograd.grad(sum(x.float().square().sum() for x in out), (qkv, bias, *norm.values()))]


def example_rope_qkv_into_cache(package, dtype):
    cache = tuple(torch.zeros((1, 2, 8, 32), dtype=dtype) for _ in range(2))
    qkv, places = randn(1, 5, 192, dtype=dtype), torch.arange(5)
    return [package.rope_qkv_into_cache(qkv, places, cache, places + 2, num_heads=2, **norm_parameters(dtype)), *cache]


def example_rotary_tables(package, dtype):
    return package.rotary_tables(torch.arange(5), 32)
