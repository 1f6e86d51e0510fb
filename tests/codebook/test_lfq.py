"""lfq_encode, lfq_decode: against the definition, the reference and each other, on every CPU code path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import lfq_decode, lfq_encode, reference
from showo_ext.testing import (
    FLOAT_DTYPES,
    assert_compiles,
    available_isas,
    guarded,
    inside_larger,
    randint,
    randn,
    use_isa,
    use_threads,
    with_special_values,
)

dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
isas = pytest.mark.parametrize("isa", available_isas())


def encode_by_definition(z: torch.Tensor, offset: int) -> torch.Tensor:
    """Bit by bit in Python integers."""
    batch, _, height, width = z.shape
    ids = torch.empty(batch, height * width, dtype=torch.int64)
    for b in range(batch):
        for position in range(height * width):
            channels = z[b, :, position // width, position % width].tolist()
            code = int("".join("1" if value > 0 else "0" for value in channels), 2)
            ids[b, position] = code + offset
    return ids


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 3),
    bits=st.integers(1, 20),
    height=st.integers(0, 9),
    width=st.integers(0, 9),
    offset=st.integers(-100, 60_000),
    dtype=st.sampled_from(FLOAT_DTYPES),
    isa=st.sampled_from(available_isas()),
    seed=st.integers(0, 99),
)
def test_follows_the_definition(batch, bits, height, width, offset, dtype, isa, seed):
    z = randn(batch, bits, height, width, dtype=dtype, seed=seed)
    with use_isa(isa):
        ids = lfq_encode(z, offset=offset)
        entries = lfq_decode(ids, bits, height, width, offset=offset, dtype=dtype)
    assert torch.equal(ids, encode_by_definition(z, offset))
    assert torch.equal(entries, torch.where(z > 0, 1.0, -1.0).to(dtype))


@dtypes
@isas
@pytest.mark.parametrize("bits", [1, 13, 16, 17, 32, 33, 62])
def test_every_width_of_the_code(dtype, isa, bits):
    z = randn(2, bits, 17, 31, dtype=dtype, seed=bits)
    with use_isa(isa):
        ids = lfq_encode(z, offset=5)
        assert torch.equal(ids, reference.lfq_encode(z, offset=5))
        entries = lfq_decode(ids, bits, 17, 31, offset=5, dtype=dtype)
    assert torch.equal(entries, reference.lfq_decode(ids, bits, 17, 31, offset=5, dtype=dtype))


def test_first_channel_is_the_most_significant_bit():
    z = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert lfq_encode(z).item() == 4
    assert lfq_decode(torch.tensor([[3]]), 3, 1, 1).flatten().tolist() == [-1.0, 1.0, 1.0]


def test_all_codes_survive_the_round_trip():
    ids = torch.arange(2**13).view(2, -1)
    assert torch.equal(lfq_encode(lfq_decode(ids, 13, 64, 64)), ids)
    assert torch.equal(lfq_encode(lfq_decode(ids + 50305, 13, 64, 64, offset=50305), offset=50305), ids + 50305)


@dtypes
@isas
def test_special_values(dtype, isa):
    tiny = torch.tensor([1], dtype=torch.int16 if dtype != torch.float32 else torch.int32).view(dtype)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan")], dtype=dtype)
    z = torch.cat([special, tiny, -tiny]).view(1, 1, 1, 8)
    with use_isa(isa):
        assert lfq_encode(z).tolist() == [[0, 0, 1, 0, 0, 0, 1, 0]]


@dtypes
@pytest.mark.parametrize("last_dim_contiguous", [True, False])
def test_any_strides(dtype, last_dim_contiguous):
    z = with_special_values(randn(3, 13, 5, 37, dtype=dtype))
    expected = reference.lfq_encode(z)
    for offset in range(9):
        view = inside_larger(z, offset=offset, last_dim_contiguous=last_dim_contiguous, pad=9)
        assert torch.equal(lfq_encode(view), expected)
    assert torch.equal(lfq_encode(z.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(lfq_encode(z.flip(0).flip(0)), expected)
    assert torch.equal(lfq_encode(z[:1].expand(3, -1, -1, -1)), expected[:1].expand(3, -1))
    assert torch.equal(lfq_decode(inside_larger(expected), 13, 5, 37), lfq_decode(expected, 13, 5, 37))


def test_writes_nothing_else():
    z = guarded(randn(2, 13, 9, 7))
    ids = guarded(reference.lfq_encode(z.tensor))
    before = z.tensor.clone()
    assert torch.equal(lfq_encode(z.tensor), ids.tensor)
    assert torch.equal(lfq_decode(ids.tensor, 13, 9, 7), torch.where(before > 0, 1.0, -1.0))
    assert torch.equal(z.tensor, before)
    z.check()
    ids.check()


def test_same_result_on_any_number_of_threads():
    z = randn(8, 13, 64, 48)
    with use_threads(1):
        ids = lfq_encode(z)
        entries = lfq_decode(ids, 13, 64, 48)
    for count in (2, 3, 7):
        with use_threads(count):
            assert torch.equal(lfq_encode(z), ids)
            assert torch.equal(lfq_decode(ids, 13, 64, 48), entries)


@pytest.mark.parametrize("shape", [(0, 13, 4, 4), (2, 13, 0, 4), (2, 13, 4, 0), (0, 1, 0, 0)])
def test_empty(shape):
    batch, bits, height, width = shape
    ids = lfq_encode(torch.zeros(shape))
    assert ids.shape == (batch, height * width)
    assert ids.dtype == torch.int64
    assert lfq_decode(ids, bits, height, width).shape == shape


def test_opcheck():
    z = randn(2, 5, 3, 4)
    torch.library.opcheck(torch.ops.showo_ext.lfq_encode.default, (z, 3))
    torch.library.opcheck(torch.ops.showo_ext.lfq_encode.default, (z.requires_grad_(), 3))
    ids = randint(3, 3 + 2**5, (2, 12))
    torch.library.opcheck(torch.ops.showo_ext.lfq_decode.default, (ids, 5, 3, 4, 3, torch.bfloat16))


def test_compiles():
    z = randn(2, 13, 6, 5)
    assert_compiles(lambda x: lfq_encode(x * 2, offset=9), z)
    assert_compiles(lambda i: lfq_decode(i, 13, 6, 5, dtype=torch.float16) * 2, lfq_encode(z))


def test_compiles_once_for_many_sizes():
    torch.compiler.reset()
    count = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def round_trip(z):
        return lfq_decode(lfq_encode(z), z.shape[1], z.shape[2], z.shape[3])

    for size in (4, 7, 12):
        z = randn(2, 13, size, size + 1)
        assert torch.equal(round_trip(z), torch.where(z > 0, 1.0, -1.0))
    assert count.frame_count == 1


def test_compiles_at_most_twice_for_many_offsets():
    torch.compiler.reset()
    count = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=count)
    def round_trip(z, offset):
        return lfq_decode(lfq_encode(z, offset=offset), 13, 4, 4, offset=offset)

    z = randn(2, 13, 4, 4)
    for offset in range(5, 25):
        assert torch.equal(round_trip(z, offset), torch.where(z > 0, 1.0, -1.0))
    assert count.frame_count == 2  # the first offset is taken for a constant


def test_autocast_changes_nothing():
    z = randn(1, 13, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids = lfq_encode(z)
        assert lfq_decode(ids, 13, 4, 4).dtype == torch.float32
    assert torch.equal(ids, reference.lfq_encode(z))


def test_ids_carry_no_gradient():
    z = randn(1, 3, 2, 2).requires_grad_()
    assert not lfq_encode(z).requires_grad


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lfq_encode([1.0]), TypeError, "z has type list"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3)), ValueError, r"z has shape \[1, 2, 3\], expected \[B, bits, H, W\]"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3, 4, dtype=torch.int64)), TypeError, "z has dtype int64"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3, 4, dtype=torch.float64)), TypeError, "z has dtype float64"),
        (lambda: lfq_encode(torch.zeros(1, 0, 3, 4)), ValueError, "bits is 0"),
        (lambda: lfq_encode(torch.zeros(1, 63, 3, 4)), ValueError, "bits is 63"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3, 4), offset=1.5), TypeError, "offset is 1.5"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3, 4), offset=2**63 - 1), ValueError, "offset is 9223372036854775807"),
        (lambda: lfq_encode(torch.zeros(1, 2, 3, 4).to_sparse()), TypeError, "z has layout"),
        (lambda: lfq_decode(None, 2, 1, 1), TypeError, "ids has type NoneType"),
        (lambda: lfq_decode(torch.zeros(1, 2), 2, 1, 2), TypeError, "ids has dtype float32, expected int64"),
        (lambda: lfq_decode(torch.zeros(1, 2).int(), 2, 1, 2), TypeError, "ids has dtype int32"),
        (lambda: lfq_decode(torch.zeros(2).long(), 2, 1, 2), ValueError, r"ids has shape \[2\]"),
        (lambda: lfq_decode(torch.zeros(1, 3).long(), 2, 1, 2), ValueError, r"expected \[B, 2\]"),
        (lambda: lfq_decode(torch.zeros(1, 2).long(), 2, -1, -2), ValueError, "height is -1, expected an int"),
        (lambda: lfq_decode(torch.zeros(1, 2).long(), 0, 1, 2), ValueError, "bits is 0"),
        (lambda: lfq_decode(torch.zeros(1, 2).long(), 2, 1, 2, dtype=torch.int8), TypeError, "dtype is torch.int8"),
        (lambda: lfq_decode(torch.tensor([[0, 4]]), 2, 1, 2), ValueError, r"ids\[0, 1\] is 4, expected .* \[0, 4\)"),
        (lambda: lfq_decode(torch.tensor([[0, -1]]), 2, 1, 2), ValueError, r"ids\[0, 1\] is -1"),
        (lambda: lfq_decode(torch.tensor([[0, 6]]), 2, 1, 2, offset=7), ValueError, r"ids\[0, 0\] is 0|\[0, 1\] is 6"),
        (
            lambda: lfq_decode(torch.tensor([[-(2**63), 2**63 - 1]]), 62, 1, 2, offset=3),
            ValueError,
            "ids.* is -?922337203685477580",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_large_tensor_reports_an_out_of_range_id():
    ids = torch.zeros(4, 128 * 128, dtype=torch.int64)
    ids[3, 16000] = 8192
    with pytest.raises(ValueError, match=r"ids\[3, 16000\] is 8192"):
        lfq_decode(ids, 13, 128, 128)


def example_lfq_encode(package, dtype):
    return [package.lfq_encode(randn(2, 5, 3, 4, dtype=dtype))]


def example_lfq_decode(package, dtype):
    return [package.lfq_decode(randint(0, 32, (2, 12)), 5, 3, 4, dtype=dtype)]
