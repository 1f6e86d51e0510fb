"""vq_encode and codebook_lookup: against fp64, the reference and torch, on every CPU code path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import codebook_lookup, reference, vq_encode
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    assert_within_budget,
    available_isas,
    guarded,
    inside_larger,
    randint,
    randn,
    use_isa,
    use_threads,
)

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
isas = pytest.mark.parametrize("isa", available_isas())


def assert_nearest(ids: torch.Tensor, z: torch.Tensor, codebook: torch.Tensor) -> None:
    """The chosen distance, in fp64, is the smallest one up to the rounding of a sum of D fp32 squares."""
    distances = (z.double().reshape(-1, 1, z.shape[-1]) - codebook.double()).square().sum(-1)
    chosen = distances.gather(1, ids.reshape(-1, 1)).squeeze(1)
    smallest = distances.min(1).values
    assert bool((chosen <= smallest * (1 + 2 * (z.shape[-1] + 2) * 2.0**-24)).all())


# ---------------------------------------------------------------- vq_encode


@settings(deadline=None, max_examples=60)
@given(
    leading=st.lists(st.integers(0, 6), max_size=3),
    dim=st.integers(1, 40),
    codes=st.integers(1, 150),
    dtype=st.sampled_from(FLOAT_DTYPES),
    isa=st.sampled_from(available_isas()),
    seed=st.integers(0, 99),
)
def test_finds_the_nearest_entry(leading, dim, codes, dtype, isa, seed):
    z = randn(*leading, dim, dtype=dtype, seed=seed)
    codebook = randn(codes, dim, dtype=dtype, seed=seed + 1)
    with use_isa(isa):
        ids = vq_encode(z, codebook)
    assert ids.shape == z.shape[:-1]
    assert ids.dtype == torch.int64
    assert_nearest(ids, z, codebook)


@isas
@pytest.mark.parametrize("codes", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 63, 64, 65, 130])
def test_block_edges(isa, codes, rows):
    z, codebook = randn(rows, 5, seed=rows), randn(codes, 5, seed=codes)
    with use_isa(isa):
        assert torch.equal(vq_encode(z, codebook), reference.vq_encode(z.double(), codebook.double()))


@isas
@dtypes
def test_lowest_index_wins_a_tie(isa, dtype):
    entries = randn(40, 12, dtype=dtype)
    codebook = torch.cat([entries, entries, entries])  # every entry three times
    with use_isa(isa):
        assert torch.equal(vq_encode(entries, codebook), torch.arange(40))
        symmetric = torch.tensor([[1.0], [-1.0], [1.0]], dtype=dtype)
        assert vq_encode(torch.zeros(4, 1, dtype=dtype), symmetric).tolist() == [0] * 4
        assert vq_encode(torch.zeros(4, 1, dtype=dtype), symmetric.flip(0)).tolist() == [0] * 4


@isas
def test_close_entries_far_from_the_origin(isa):
    # |z|^2 - 2 z.c + |c|^2 would lose all digits of these distances
    z = 1000 + randn(50, 8)
    codebook = 1000 + randn(300, 8, seed=1)
    with use_isa(isa):
        assert torch.equal(vq_encode(z, codebook), reference.vq_encode(z.double(), codebook.double()))


@isas
@dtypes
def test_special_values(isa, dtype):
    nan, inf = float("nan"), float("inf")
    codebook = torch.tensor([[nan, 0.0], [inf, 0.0], [5.0, 5.0], [1.0, 1.0]], dtype=dtype)
    z = torch.tensor([[0.0, 0.0], [5.0, 4.0], [nan, 0.0], [inf, 0.0], [0.0, -inf]], dtype=dtype)
    with use_isa(isa):
        ids = vq_encode(z, codebook)
    assert ids.tolist() == [3, 2, 0, 0, 0]
    assert torch.equal(ids, reference.vq_encode(z, codebook))


@dtypes
def test_encode_any_strides(dtype):
    z, codebook = randn(3, 5, 24, dtype=dtype), randn(70, 24, dtype=dtype, seed=1)
    expected = vq_encode(z, codebook)
    for last_dim_contiguous in (True, False):
        z_view = inside_larger(z, last_dim_contiguous=last_dim_contiguous)
        codebook_view = inside_larger(codebook, last_dim_contiguous=last_dim_contiguous)
        assert torch.equal(vq_encode(z_view, codebook_view), expected)
    assert torch.equal(vq_encode(z.transpose(0, 1), codebook), expected.transpose(0, 1))
    assert torch.equal(vq_encode(z, codebook.t().contiguous().t()), expected)
    assert torch.equal(vq_encode(z[:1, :1].expand(4, 2, -1), codebook), expected[:1, :1].expand(4, 2))


def test_encode_same_result_on_any_number_of_threads():
    z, codebook = randn(300, 16), randn(500, 16, seed=1)
    with use_threads(1):
        expected = vq_encode(z, codebook)
    for count in (2, 3, 7):
        with use_threads(count):
            assert torch.equal(vq_encode(z, codebook), expected)


def test_encode_opcheck():
    z, codebook = randn(3, 4, 6), randn(9, 6, seed=1)
    torch.library.opcheck(torch.ops.showo_ext.vq_encode.default, (z, codebook))
    torch.library.opcheck(torch.ops.showo_ext.vq_encode.default, (z.requires_grad_(), codebook.requires_grad_()))


def test_encode_takes_fp32_under_autocast():
    z, codebook = randn(20, 8), randn(50, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq_encode(z, codebook), vq_encode(z.float(), codebook))
        assert torch.equal(vq_encode(z.bfloat16(), codebook), vq_encode(z.bfloat16().float(), codebook))


# ---------------------------------------------------------------- codebook_lookup


@settings(deadline=None, max_examples=60)
@given(
    leading=st.lists(st.integers(0, 9), max_size=3),
    codes=st.integers(1, 30),
    dim=st.integers(0, 70),
    dtype=st.sampled_from(FLOAT_DTYPES),
    isa=st.sampled_from(available_isas()),
    seed=st.integers(0, 99),
)
def test_lookup_and_its_gradient(leading, codes, dim, dtype, isa, seed):
    ids = randint(0, codes, leading, seed=seed)
    codebook = randn(codes, dim, dtype=dtype, seed=seed).requires_grad_()
    cotangent = randn(*leading, dim, dtype=dtype, seed=seed + 1)
    with use_isa(isa):
        out = codebook_lookup(ids, codebook)
        (gradient,) = torch.autograd.grad(out, codebook, cotangent)
    assert torch.equal(out, codebook[ids])
    oracle = torch.zeros(codes, dim, dtype=torch.float64)
    oracle.index_add_(0, ids.flatten(), cotangent.double().reshape(ids.numel(), dim))
    (peer,) = torch.autograd.grad(codebook[ids], codebook, cotangent)
    assert_within_budget(gradient, oracle, peer, what="gradient")


@dtypes
def test_gradient_adds_in_fp32(dtype):
    # 4096 ones: in 16 bits a running sum would stop at 256 (bf16) or 2048 (fp16)
    codebook = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
    codebook_lookup(torch.ones(4096, dtype=torch.int64), codebook).backward(torch.ones(4096, 5, dtype=dtype))
    assert codebook.grad[1].tolist() == [4096.0] * 5
    assert codebook.grad[[0, 2]].abs().sum() == 0


def test_gradient_same_bits_on_any_number_of_threads():
    ids = randint(0, 11, (5000,))
    codebook = randn(11, 33).requires_grad_()
    cotangent = randn(5000, 33, seed=1)
    gradients = []
    for count in (1, 2, 3, 8):
        with use_threads(count):
            gradients += torch.autograd.grad(codebook_lookup(ids, codebook), codebook, cotangent)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_gradcheck_by_finite_differences():
    # The operator is linear in the codebook, so differences of fp32 results are exact for small integers.
    ids = randint(0, 5, (4, 6))
    cotangent = randint(-4, 5, (4, 6, 3)).float()
    codebook = randint(-9, 9, (5, 3)).float().requires_grad_()
    (gradient,) = torch.autograd.grad(codebook_lookup(ids, codebook), codebook, cotangent)
    for k in range(5):
        for d in range(3):
            step = torch.zeros(5, 3)
            step[k, d] = 1.0
            difference = codebook_lookup(ids, codebook.detach() + step) - codebook_lookup(ids, codebook.detach())
            assert (difference * cotangent).sum() == gradient[k, d]


def test_second_derivative():
    ids = randint(0, 5, (7,))
    codebook = randn(5, 3).requires_grad_()
    out = codebook_lookup(ids, codebook)
    (gradient,) = torch.autograd.grad(out.square().sum(), codebook, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), codebook)
    counts = torch.bincount(ids, minlength=5).float()
    assert torch.equal(second, (2 * counts)[:, None].expand(5, 3))


@dtypes
def test_lookup_any_strides(dtype):
    ids, codebook = randint(0, 30, (4, 6)), randn(30, 17, dtype=dtype)
    expected = codebook[ids]
    for last_dim_contiguous in (True, False):
        ids_view = inside_larger(ids, last_dim_contiguous=last_dim_contiguous)
        view = inside_larger(codebook, last_dim_contiguous=last_dim_contiguous).requires_grad_()
        out = codebook_lookup(ids_view, view)
        assert torch.equal(out, expected)
        cotangent = randn(4, 6, 17, dtype=dtype)
        strided = inside_larger(cotangent, last_dim_contiguous=last_dim_contiguous)
        (gradient,) = torch.autograd.grad(out, view, strided)
        fresh = codebook.clone().requires_grad_()
        assert torch.equal(gradient, torch.autograd.grad(codebook_lookup(ids, fresh), fresh, cotangent)[0])
    expanded = torch.ones(()).expand(4, 6, 17)  # what .sum().backward() hands over
    fresh = codebook.float().requires_grad_()
    (gradient,) = torch.autograd.grad(codebook_lookup(ids, fresh), fresh, expanded)
    assert torch.equal(gradient, torch.bincount(ids.flatten(), minlength=30)[:, None].float().expand(30, 17))


def test_writes_nothing_else():
    z, codebook, ids = guarded(randn(37, 9)), guarded(randn(21, 9, seed=1)), guarded(randint(0, 21, (37,)))
    copies = [g.tensor.clone() for g in (z, codebook, ids)]
    vq_encode(z.tensor, codebook.tensor)
    codebook_lookup(ids.tensor, codebook.tensor)
    for g, copy in zip((z, codebook, ids), copies):
        g.check()
        assert torch.equal(g.tensor, copy)


def test_lookup_trains_with_ids_made_in_inference_mode():
    codebook = randn(9, 5).requires_grad_()
    with torch.inference_mode():
        ids = randint(0, 9, (2, 4))
    (gradient,) = torch.autograd.grad(codebook_lookup(ids, codebook).square().sum(), codebook, create_graph=True)
    assert torch.equal(gradient, torch.bincount(ids.clone().flatten(), minlength=9).view(9, 1) * 2 * codebook)
    (second,) = torch.autograd.grad(gradient.sum(), codebook)
    assert torch.equal(second, torch.bincount(ids.clone().flatten(), minlength=9).view(9, 1).expand(9, 5) * 2.0)


def test_lookup_opcheck():
    ids, codebook = randint(0, 9, (2, 5)), randn(9, 6).requires_grad_()
    torch.library.opcheck(torch.ops.showo_ext.codebook_lookup.default, (ids, codebook))
    grad = randn(2, 5, 6).requires_grad_()
    torch.library.opcheck(torch.ops.showo_ext.codebook_lookup_backward.default, (grad, ids, 9))


def test_compiles():
    codebook = randn(9, 6)
    assert_compiles(lambda z, c: vq_encode(z * 2, c), randn(3, 4, 6), codebook)
    assert_compiles(lambda i, c: codebook_lookup(i, c) + 1, randint(0, 9, (2, 5)), codebook)

    def loss(ids, codebook):
        return codebook_lookup(ids, codebook).square().sum()

    ids, gradients = randint(0, 9, (2, 5)), []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = codebook.clone().requires_grad_()
        gradients += torch.autograd.grad(function(ids, leaf), leaf)
    assert torch.equal(*gradients)


def test_nearest_entries_map_to_themselves():
    codebook = randn(200, 16)
    assert torch.equal(codebook_lookup(vq_encode(codebook, codebook), codebook), codebook)


# ---------------------------------------------------------------- bad input

Z, C, IDS = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: vq_encode([0.0], C), TypeError, "z has type list"),
        (lambda: vq_encode(Z, None), TypeError, "codebook has type NoneType"),
        (lambda: vq_encode(Z.double(), C.double()), TypeError, "z has dtype float64"),
        (lambda: vq_encode(Z.half(), C), TypeError, "z has dtype float16, expected float32, the dtype of codebook"),
        (lambda: vq_encode(Z.long(), C), TypeError, "z has dtype int64"),
        (lambda: vq_encode(Z, C[0]), ValueError, r"codebook has shape \[4\], expected \[K, D\]"),
        (lambda: vq_encode(Z[:, :3], C), ValueError, r"z has shape \[2, 3\], expected \[\.\.\., 4\]"),
        (lambda: vq_encode(torch.tensor(1.0), C), ValueError, r"z has shape \[\]"),
        (lambda: vq_encode(Z, C[:0]), ValueError, r"codebook has shape \[0, 4\]"),
        (lambda: vq_encode(Z[:, :0], C[:, :0]), ValueError, r"codebook has shape \[3, 0\]"),
        (lambda: vq_encode(Z, C.to("meta")), ValueError, "z is on cpu, expected meta, the device of codebook"),
        (lambda: vq_encode(Z.to_sparse(), C), TypeError, "z has layout"),
        (lambda: codebook_lookup(3, C), TypeError, "ids has type int"),
        (lambda: codebook_lookup(IDS, C.long()), TypeError, "codebook has dtype int64"),
        (lambda: codebook_lookup(IDS.int(), C), TypeError, "ids has dtype int32, expected int64"),
        (lambda: codebook_lookup(IDS, C[None]), ValueError, r"codebook has shape \[1, 3, 4\]"),
        (lambda: codebook_lookup(IDS.to("meta"), C), ValueError, "ids is on meta, expected cpu, the device"),
        (lambda: codebook_lookup(IDS + 3, C), ValueError, r"ids has 3 at flat position \d, expected .* \[0, 3\)"),
        (lambda: codebook_lookup(IDS - 1, C), ValueError, r"ids has -1 at flat position"),
        (lambda: codebook_lookup(IDS, C[:0]), ValueError, r"ids has 0 at flat position"),
        (
            lambda: torch.ops.showo_ext.codebook_lookup_backward(torch.zeros(2, 4), IDS + 9, 3),
            ValueError,
            "ids has 9 at flat position 0",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("leading", [(0,), (3, 0), (0, 5)])
def test_empty(leading):
    codebook = randn(4, 6).requires_grad_()
    assert vq_encode(torch.zeros(*leading, 6), codebook.detach()).shape == leading
    out = codebook_lookup(torch.zeros(leading, dtype=torch.int64), codebook)
    assert out.shape == (*leading, 6)
    out.sum().backward()
    assert torch.equal(codebook.grad, torch.zeros(4, 6))
    assert codebook_lookup(torch.zeros(leading, dtype=torch.int64), torch.zeros(0, 6)).shape == (*leading, 6)


def example_vq_encode(package, dtype):
    return [package.vq_encode(randn(40, 8, dtype=dtype), randn(60, 8, dtype=dtype, seed=1))]


def example_codebook_lookup(package, dtype):
    codebook = randn(6, 8, dtype=dtype).requires_grad_()
    out = package.codebook_lookup(randint(0, 6, (3, 5)), codebook)
    return [out, *torch.autograd.grad(out.square().sum(), codebook)]
