"""The emulated CUDA runtime under the extension's own host code, and the operators on it.

Every kernel of the tree must be launched by a test in this folder: the last two tests see to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from tests.ptx import emulated, kernel_table  # noqa: E402
from tests.ptx.device import Finding  # noqa: E402

if emulated.module_path() is None:
    pytest.skip("_C_emulated is not built (it needs nvcc); `make emulator` builds it", allow_module_level=True)

import showo_ext  # noqa: E402
from showo_ext import reference  # noqa: E402
from showo_ext._native import launch  # noqa: E402
from showo_ext.ops import OPERATORS  # noqa: E402
from showo_ext.ops._mask_plan import make_plan  # noqa: E402
from tests.examples import examples  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
F32_F16 = [torch.float32, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def begun() -> set[str]:
    """Tests of this file that have begun in this process; launches are counted from the first of them on."""
    emulated.library().ptx_forget_launches()
    return set()


@pytest.fixture(autouse=True)
def note(begun: set[str], request: pytest.FixtureRequest) -> None:
    begun.add(request.node.nodeid)


@pytest.fixture
def device():
    with emulated.emulated_device() as device:
        yield device


def clean(device: emulated.EmulatedDevice) -> None:
    """Every launched kernel wrote all of what it was given to write, and only that."""
    assert device.records()
    for record in device.records():
        for tensor in record.tensors:
            assert tensor["never_written"] == 0, (record.kernel, tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [name for name, rooms in OPERATORS.items() if rooms.cuda == "native"])
def test_every_operator_runs_without_a_finding(device, op: str, dtype: torch.dtype) -> None:
    examples()[op](showo_ext, dtype)
    assert device.records()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 13, 16, 16), (3, 7, 5, 3), (1, 40, 8, 16), (1, 33, 3, 3)])
def test_lfq(device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    z = torch.randn(shape).to(dtype)
    ids = showo_ext.lfq_encode(z, offset=50305)
    back = showo_ext.lfq_decode(ids, *shape[1:], offset=50305, dtype=dtype)
    assert torch.equal(ids, reference.lfq_encode(z, offset=50305))
    assert torch.equal(back, torch.where(z > 0, 1.0, -1.0).to(dtype))
    clean(device)


@pytest.mark.parametrize("name", ["cpu", "emulated"])
def test_one_test_body_for_every_backend(name: str) -> None:
    if name == "cpu" and not showo_ext.build_info()["native"]:
        pytest.skip("showo_ext._C is not built")
    z = torch.randn(2, 13, 4, 4)
    with emulated.backend(name):
        assert torch.equal(showo_ext.lfq_encode(z), reference.lfq_encode(z))


def test_lfq_with_strides(device) -> None:
    z = torch.randn(2, 12, 9, 20)[:, ::2, 1:8, 3:19]
    assert torch.equal(showo_ext.lfq_encode(z), reference.lfq_encode(z))
    clean(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [12, 32, 64, 128, 256, 300])
def test_vq_encode(device, dtype: torch.dtype, dim: int) -> None:
    z, codebook = torch.randn(70, dim).to(dtype), torch.randn(150, dim).to(dtype)
    codebook[100] = codebook[3]  # ties go to the lowest index
    z[5] = codebook[3]
    assert torch.equal(showo_ext.vq_encode(z, codebook), reference.vq_encode(z, codebook))
    clean(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 10, 7])
def test_codebook_lookup(device, dtype: torch.dtype, width: int) -> None:
    codebook = torch.randn(40, width).to(dtype).requires_grad_()
    ids = torch.randint(0, 40, (3, 50))
    rows = showo_ext.codebook_lookup(ids, codebook)
    gradient = torch.randn_like(rows)
    rows.backward(gradient)
    assert torch.equal(rows, codebook[ids])
    expected = torch.zeros(40, width, dtype=torch.float64).index_add_(0, ids.flatten(), gradient.flatten(0, 1).double())
    band = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(codebook.grad.double(), expected, rtol=band, atol=band)
    clean(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "how"), [(1000, {}), (1000, {"top_k": 50, "top_p": 0.8}), (41000, {"top_k": 50, "top_p": 0.8})]
)
def test_sample_tokens(device, dtype: torch.dtype, vocab: int, how: dict[str, float]) -> None:
    cond, uncond = (torch.randn(2, vocab).to(dtype) for _ in range(2))
    weights = torch.tensor([2.0, -0.5])
    for given in ({"logits": cond, "guidance": 1.5}, {"logits": torch.stack((cond, -cond)), "weights": weights}):
        ids, logprob = showo_ext.sample_tokens(uncond=uncond, seed=4, **given, **how)
        expected = reference.sample_tokens(uncond=uncond, seed=4, **given, **how)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(logprob, expected[1], rtol=1e-6, atol=2e-6)
    clean(device)


@pytest.mark.parametrize("length", [300, 4097])
def test_remask_and_corrupt_tokens(device, length: int) -> None:
    ids, logprob, known = torch.randint(0, 99, (2, length)), -torch.rand(2, length), torch.rand(2, length) < 0.4
    got = showo_ext.remask(ids, logprob, known, length // 5, 1.0, 99, seed=4)
    assert all(map(torch.equal, got, reference.remask(ids, logprob, known, length // 5, 1.0, 99, seed=4)))
    corrupted = showo_ext.corrupt_tokens(ids, 0.3, 99, seed=4)
    assert all(map(torch.equal, corrupted, reference.corrupt_tokens(ids, 0.3, 99, seed=4)))
    clean(device)


def test_block_table(device) -> None:
    intervals = torch.randint(0, 150, (2, 130, 3, 2), dtype=torch.int32).sort(-1).values
    states, seen = torch.ops.showo_ext.omni_block_table(intervals, 150)
    dense = showo_ext.OmniMask(intervals, 150).to_dense()
    assert states.shape == (2, 3, 3)
    assert torch.equal(states[:, 1, 1] > 0, dense[:, 64:128, 64:128].flatten(1).any(1))
    assert torch.equal(seen[:, :150], dense.any(1))
    clean(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("tile_rows", [64, 128])
def test_omni_attention_forward(device, dtype: torch.dtype, dim: int, tile_rows: int) -> None:
    if tile_rows == 128 and (dtype == torch.float32 or dim == 256):
        return  # the small tile alone
    if dtype == torch.float32 and dim == 256:
        return  # there is none
    mask = showo_ext.OmniMask.prefix(torch.tensor([70]), 140)
    q, k, v = (torch.randn(1, 1, 140, dim).to(dtype) for _ in range(3))
    out, lse = torch.ops.showo_ext.omni_attention_forward(q, k, v, *make_plan(mask, tile_rows), 0.1)
    expected = reference.omni_attention(q.double(), k.double(), v.double(), mask, scale=0.1)
    band = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=band, atol=band)
    assert not lse.isnan().any()
    clean(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("columns", [200, 600])  # one split, and two with the combine kernel
def test_omni_attention_decode(device, dtype: torch.dtype, dim: int, columns: int) -> None:
    if dtype == torch.float32 and dim == 256:
        return  # there is none
    mask = showo_ext.OmniMask.causal(1, 3, kv_length=columns)
    q, k, v = (torch.randn(1, 2, n, dim).to(dtype) for n in (3, columns, columns))
    out, lse = showo_ext.omni_attention(q, k, v, mask, scale=0.1, return_lse=True)
    expected = reference.omni_attention(q.double(), k.double(), v.double(), mask, scale=0.1)
    band = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=band, atol=band)
    assert not lse.isnan().any()
    assert len(device.records()) == (1 if columns == 200 else 2)
    assert all(tensor["never_written"] == 0 for tensor in device.records()[-1].tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("deterministic", [False, True])
def test_omni_attention_backward(device, dtype: torch.dtype, dim: int, deterministic: bool) -> None:
    if dtype == torch.float32 and not deterministic:
        return  # fp32 has but one path
    mask = showo_ext.OmniMask.prefix(torch.tensor([30]), 70)
    leaves = [torch.randn(1, 1, 70, dim).to(dtype).requires_grad_() for _ in range(3)]
    out = showo_ext.omni_attention(*leaves, mask, scale=0.1, deterministic=deterministic)
    got = torch.autograd.grad(out, leaves, torch.ones_like(out))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    expected = reference.omni_attention(*wide, mask, scale=0.1)
    band = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    for actual, oracle in zip(got, torch.autograd.grad(expected, wide, torch.ones_like(expected)), strict=True):
        torch.testing.assert_close(actual.double(), oracle, rtol=band, atol=band)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("rotary_dim", [32, 22])  # vectors, single elements
def test_rope_qkv(device, dtype: torch.dtype, dim: int, rotary_dim: int) -> None:
    qkv = torch.randn(1, 3, 4 * dim).to(dtype).requires_grad_()
    norm = {"q_weight": torch.randn(dim), "k_weight": torch.randn(dim)}
    positions = torch.arange(3)
    out = showo_ext.rope_qkv(qkv, positions, num_heads=2, num_kv_heads=1, rotary_dim=rotary_dim, **norm)
    expected = reference.rope_qkv(qkv.float(), positions, num_heads=2, num_kv_heads=1, rotary_dim=rotary_dim, **norm)
    band = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for actual, oracle in zip(out, expected, strict=True):
        torch.testing.assert_close(actual.float(), oracle, rtol=band, atol=band)
    torch.autograd.grad([x.sum() for x in out], qkv)
    clean(device)


def test_empty_inputs_launch_nothing(device) -> None:
    assert showo_ext.lfq_encode(torch.empty(0, 13, 4, 4)).shape == (0, 16)
    assert showo_ext.sample_tokens(torch.empty(2, 0, 5), seed=0)[0].shape == (2, 0)
    assert showo_ext.corrupt_tokens(torch.empty(0, 5, dtype=torch.int64), 0.5, 9, seed=0)[0].shape == (0, 5)
    assert device.records() == []


def test_findings_reach_the_caller(device) -> None:
    """A launcher that is told wrong sizes reads past its tensor; the report names kernel and tensor."""
    z = torch.randn(1, 4, 4, 4)
    ids = torch.empty(1, 16, dtype=torch.int64)
    with pytest.raises(Finding, match=r"out-of-bounds: .* past the end of 'float32\[1, 4, 4, 4\]'") as caught:
        launch(
            "lfq_encode", z, z=z, ids=ids, dtype=z.dtype, batch=1, bits=5, height=4, width=4,
            stride_batch=80, stride_bit=16, stride_row=4, stride_column=1, offset=0,
        )  # fmt: skip
    assert "lfq_encode_kernel" in str(caught.value)
    assert "lfq.cu:" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_without_threads_the_device_runs_serially(device, without_new_threads) -> None:
    z = torch.randn(3, 13, 32, 32)
    expected = showo_ext.lfq_encode(z)
    assert np.prod(device.records()[0].grid) > 1

    def check() -> None:
        assert torch.equal(showo_ext.lfq_encode(z), expected)

    without_new_threads(check)


def test_memory_of_another_call_is_out_of_reach(device) -> None:
    first = torch.randn(1, 4, 4, 4)
    showo_ext.lfq_encode(first)
    ids = torch.empty(1, 16, dtype=torch.int64)
    second = torch.randn(1, 4, 4, 4)
    distance = (first.data_ptr() - second.data_ptr()) // 4
    with pytest.raises(Finding, match="out-of-bounds"):
        launch(
            "lfq_encode", second, z=second, ids=ids, dtype=second.dtype, batch=1, bits=2, height=4, width=4,
            stride_batch=64, stride_bit=distance, stride_row=4, stride_column=1, offset=0,
        )  # fmt: skip


def test_tensors_that_are_gone_are_forgotten(device) -> None:
    """Else a long test fills the memory, and a tensor at the address of another one has the other one's size."""
    buffer = bytearray(1000)
    for width in (2, 9):
        z = torch.frombuffer(buffer, dtype=torch.float32, count=5 * width).view(1, 5, 1, width)
        ids = showo_ext.lfq_encode(z)
        storages = [StorageWeakRef(x.untyped_storage()) for x in (z, ids)]
        del z, ids
        assert all(storage.expired() for storage in storages)


def test_device_attributes_are_those_of_an_a100() -> None:
    import ctypes

    from tests.ptx.device import library

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        assert library().cudaDeviceGetAttribute(ctypes.byref(value), number, 0) == 0
        return value.value

    assert attribute(16) == 108  # multiprocessors
    assert attribute(97) == 163 * 1024  # shared memory per block, opted in
    assert (attribute(75), attribute(76)) == (8, 0)
    assert library().cudaSetDevice(1) != 0


def test_memory_functions() -> None:
    import ctypes

    from tests.ptx.device import library

    lib = library()
    pointer = ctypes.c_void_p()
    assert lib.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(64)) == 0
    assert lib.cudaMemsetAsync(pointer, 7, ctypes.c_size_t(64), None) == 0
    back = np.zeros(64, np.uint8)
    assert lib.cudaMemcpyAsync(back.ctypes.data_as(ctypes.c_void_p), pointer, ctypes.c_size_t(64), 2, None) == 0
    assert (back == 7).all()
    assert lib.cudaMemsetAsync(pointer, 0, ctypes.c_size_t(65), None) != 0  # past the end
    lib.cudaGetErrorString.restype = ctypes.c_char_p
    assert b"crosses the end of 'cudaMalloc'" in lib.cudaGetErrorString(1)
    assert lib.cudaGetLastError() != 0
    assert lib.cudaGetLastError() == 0
    assert lib.cudaFree(pointer) == 0


@pytest.fixture
def all_launched(begun: set[str], request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the tests above have launched, if all of them have run here."""
    items = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    names = {name for name in vars(request.module) if name.startswith("test_")}
    above = {item.nodeid for item in items[: items.index(request.node)]}
    if {item.originalname for item in items} != names or not above <= begun:
        pytest.skip("only meaningful when all tests of this file run, in one process")
    return emulated.launched_kernels()


def test_every_kernel_is_launched(all_launched) -> None:
    """Entry points in the PTX of the tree against those that the tests above have launched."""
    missing = set(emulated.registered_kernels()) - {kernel["kernel"] for kernel in all_launched}
    assert not missing, "no emulated test launches:\n" + "\n".join(sorted(missing))


def test_table_of_kernels_is_current(all_launched, request: pytest.FixtureRequest) -> None:
    registered = set(emulated.registered_kernels())
    page = kernel_table.page([kernel for kernel in all_launched if kernel["kernel"] in registered])
    if request.config.getoption("--write-kernel-table"):
        kernel_table.PAGE.write_text(page)
    recorded = kernel_table.PAGE.read_text()
    if kernel_table.compiler(recorded) != kernel_table.compiler(page):
        pytest.skip(f"docs/kernels.md was made by {kernel_table.compiler(recorded)}")
    assert recorded == page, "docs/kernels.md is out of date: make kernel-table"
