"""Every operator, with every tensor of a call in a memory layout of its own, drawn at random.

A kernel that takes one tensor's strides for another's passes tests in which all tensors lie alike. Results must be
those of contiguous tensors: bit for bit, but where the width of accesses decides the order of a sum.
"""

from itertools import product

import pytest
import torch

from showo_ext import (
    OmniMask,
    codebook_lookup,
    corrupt_tokens,
    lfq_decode,
    lfq_encode,
    omni_attention,
    remask,
    resample,
    rope_qkv,
    rope_qkv_into_cache,
    rotary_tables,
    sample_tokens,
    skinny_linear,
    vq_encode,
)
from showo_ext.testing import FLOAT_DTYPES, in_random_layout, poisoned, randint, randn, uniforms

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
# 1: addresses that allow single elements only; 8: the widest accesses, so that no operator copies its inputs
multiples = pytest.mark.parametrize("multiple", [1, 8])


def scattered(tensors, multiple, seed=0):
    """Each tensor in a layout of its own."""
    return [in_random_layout(x, seed=100 * seed + i, multiple=multiple) for i, x in enumerate(tensors)]


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected)):
        assert not (e.is_floating_point() and e.isnan().any()), f"result {i} has NaN"
        assert torch.equal(a, e), f"result {i} differs"


def random_mask(batch, rows, columns, device):
    ends = randint(0, columns + 1, (batch, rows, 2, 2), seed=rows).sort(-1).values.int()
    ends[:, rows // 2 :, 0] = torch.tensor([0, columns], dtype=torch.int32)  # full blocks as well
    return OmniMask(ends.to(device), columns)


@pytest.mark.parametrize(
    ("dim", "dtype"), [*product([32, 64, 96, 128], [torch.bfloat16]), (64, torch.float16), (64, torch.float32)]
)
@pytest.mark.parametrize(
    ("rows", "columns", "multiple", "deterministic"),
    [(7, 130, 8, False), (7, 515, 8, False), (66, 70, 8, False), (66, 70, 8, True), (66, 70, 1, True)],
    ids=["few rows", "few rows, split", "atomic", "deterministic", "narrow"],
)
def test_omni_attention(any_device, dtype, dim, rows, columns, multiple, deterministic):
    """Forward and backward with 2 kv heads for 4 query heads; on CUDA few rows take kernels of their own."""
    mask = random_mask(2, rows, columns, any_device)
    shapes = ((4, rows), (2, columns), (2, columns), (4, rows))
    tensors = [randn(2, h, n, dim, dtype=dtype, seed=dim + i, device=any_device) for i, (h, n) in enumerate(shapes)]
    dlse = randn(2, 4, rows, seed=5, device=any_device)

    def run(q, k, v, dout, dlse, intervals):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        mask = OmniMask(intervals, columns)
        out, lse = omni_attention(q, k, v, mask, return_lse=True, deterministic=deterministic)
        return [out, *torch.autograd.grad((out, lse), (q, k, v), (dout, dlse.masked_fill(lse.isinf(), 0.0)))]

    expected = run(*tensors, dlse, mask.intervals)
    actual = run(*scattered([*tensors, dlse, mask.intervals], multiple, seed=rows + dim))
    if not deterministic:  # on CUDA dq is then a sum in any order
        torch.testing.assert_close(actual.pop(1), expected.pop(1))
    assert_equal(actual, expected)


@dtypes
@multiples
@pytest.mark.parametrize("in_three", [False, True])
def test_rope_qkv(any_device, dtype, multiple, in_three):
    batch, length, heads, kv_heads, dim = 2, 5, 4, 2, 64
    projection = [randn(batch, length, n * dim, dtype=dtype, seed=n, device=any_device) for n in (heads, kv_heads)]
    projection.append(randn(batch, length, kv_heads * dim, dtype=dtype, seed=3, device=any_device))
    tables = list(rotary_tables(randint(0, 900, (batch, length), device=any_device), 32))
    parameters = {"bias": randn((heads + 2 * kv_heads) * dim, dtype=dtype, device=any_device)}
    for i, name in enumerate(("q_weight", "q_bias", "k_weight", "k_bias")):
        parameters[name] = randn(dim, dtype=dtype, seed=10 + i, device=any_device)
    cotangents = [randn(batch, n, length, dim, dtype=dtype, seed=n, device=any_device) for n in (heads, kv_heads)]
    cotangents.append(randn(batch, kv_heads, length, dim, dtype=dtype, seed=30, device=any_device))
    if not in_three:
        projection = [torch.cat(projection, -1)]
    count = len(projection)
    slots = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(b))[:length] for b in range(batch)])

    def run(tensors, caches, slots):
        leaves = [x.detach().requires_grad_() for x in tensors[:count]]
        given = tuple(leaves) if in_three else leaves[0]
        cos, sin, *rest = tensors[count : count + 7]
        weights = dict(zip(parameters, (x.detach().requires_grad_() for x in rest)))
        options = {"num_heads": heads, "num_kv_heads": kv_heads, **weights}
        out = rope_qkv(given, (cos, sin), **options)
        gradients = torch.autograd.grad(out, [*leaves, *weights.values()], tensors[count + 7 :])
        with torch.no_grad():
            q = rope_qkv_into_cache(given, (cos, sin), tuple(caches), slots, **options)
        return [*out, *gradients, q]

    tensors = [*projection, *tables, *parameters.values(), *cotangents]
    caches = [torch.zeros(batch, kv_heads, 9, dim, dtype=dtype, device=any_device) for _ in range(2)]
    other_caches = scattered(caches, multiple, seed=7)
    slots = slots.to(any_device)
    expected = run(tensors, caches, slots)
    actual = run(scattered(tensors, multiple), other_caches, in_random_layout(slots, seed=50))
    for a, e in zip([*actual, *other_caches], [*expected, *caches], strict=True):
        torch.testing.assert_close(a, e)


@dtypes
@multiples
def test_codebook(any_device, dtype, multiple):
    z = randn(2, 13, 3, 24, dtype=dtype, device=any_device)
    rows, cotangent = (randn(2, 40, 64, dtype=dtype, seed=s, device=any_device) for s in range(2))
    codebook, ids = randn(90, 64, dtype=dtype, device=any_device), randint(0, 90, (2, 40), device=any_device)

    def run(z, rows, codebook, ids, cotangent):
        codes = lfq_encode(z)
        codebook = codebook.detach().requires_grad_()
        looked_up = codebook_lookup(ids, codebook)
        (gradient,) = torch.autograd.grad(looked_up, codebook, cotangent)
        return [codes, lfq_decode(ids % 8192, 13, 4, 10), vq_encode(rows, codebook.detach()), looked_up, gradient]

    tensors = [z, rows, codebook, ids, cotangent]
    expected = run(*tensors)
    *actual, gradient = run(*scattered(tensors, multiple))
    torch.testing.assert_close(gradient, expected.pop())  # on CUDA a sum in any order
    assert_equal(actual, expected)


@dtypes
@multiples
def test_resample(any_device, dtype, multiple):
    logits, uncond = (randn(3, 7, 64, dtype=dtype, seed=s, device=any_device) for s in range(2))
    noise, remask_noise = uniforms(3, 7, 64, device=any_device), uniforms(3, 7, seed=1, device=any_device)
    ids = randint(0, 64, (3, 7), device=any_device)
    known, logprob = ids % 3 == 0, randn(3, 7, seed=4, device=any_device)
    counts, seeds = (randint(0, 5, (3,), seed=s, device=any_device) for s in range(2))
    ratios = uniforms(3, seed=9, device=any_device)

    def run(logits, uncond, noise, remask_noise, ids, known, logprob, counts, seeds, ratios):
        drawn = {"uncond": uncond, "guidance": 1.5, "top_k": 20, "top_p": 0.9}
        return [
            *sample_tokens(logits, noise=noise, seed=0, **drawn),
            *sample_tokens(logits, seed=seeds, **drawn),
            *remask(ids, logprob, known, counts, 1.0, 99, seed=0, noise=remask_noise),
            *remask(ids, logprob, known, counts, 1.0, 99, seed=seeds),
            *resample(logits, ids, counts, 99, known=known, seed=0, noise=noise, remask_noise=remask_noise, **drawn),
            *resample(logits, ids, counts, 99, known=known, seed=seeds, **drawn),
            *corrupt_tokens(ids, ratios, 99, seed=0, noise=remask_noise),
            *corrupt_tokens(ids, ratios, 99, seed=seeds),
        ]

    tensors = [logits, uncond, noise, remask_noise, ids, known, logprob, counts, seeds, ratios]
    assert_equal(run(*scattered(tensors, multiple)), run(*tensors))


def test_a_random_layout_differs_from_every_other():
    """What the tests above rest on: other strides and start for every tensor, the same values, poison between."""
    x = randn(2, 4, 6, 8)
    views = scattered([x] * 6, 8)
    assert len({view.stride() for view in views}) > 3
    assert all(torch.equal(view, x) for view in views)
    base = views[0]._base
    assert base is not None
    assert bool(base.isnan().any())
    assert poisoned((2,)).isnan().all()


@dtypes
@multiples
@pytest.mark.parametrize("int8", [False, True], ids=["float weights", "int8 weights"])
def test_skinny_linear(dtype, multiple, int8):
    """On the CPU: elsewhere it is torch's own product, whose order of sums may follow the layout."""
    x, bias = (randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 3, 200), (90,)]))
    weight = randn(90, 200, dtype=dtype, seed=2)
    scale = None
    if int8:
        weight = randint(-128, 128, (90, 200), seed=3).to(torch.int8)
        scale = in_random_layout(randn(90, seed=4), seed=5)
    expected = skinny_linear(x, weight, bias, scale=scale)
    x, weight, bias = scattered((x, weight, bias), multiple)
    assert_equal([skinny_linear(x, weight, bias, scale=scale)], [expected])
