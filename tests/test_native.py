"""The loader, the instruction sets, and CUDA launchers on a machine that has no GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import showo_ext
from showo_ext import _native
from showo_ext.testing import ISAS, available_isas, randn, use_isa

HAS_CUDA = showo_ext.build_info()["has_cuda"]


def test_build_info_describes_this_build():
    info = showo_ext.build_info()
    assert info["native"]
    assert info["native_error"] == ""
    assert info["version"] == showo_ext.__version__
    assert info["cpu_isa"] in ISAS
    assert info["cpu_isa"] == info["cpu_isa_best"]
    assert set(info["operators"]) == set(_native.LAUNCHERS)
    assert bool(info["cuda_archs"]) == bool(info["cuda_version"]) == info["has_cuda"]
    if info["has_cuda"]:
        assert info["cuda_archs"][-1].endswith("-virtual")  # PTX, for GPUs newer than the build


@pytest.mark.skipif(
    showo_ext.build_info()["cuda_archs"] != ["80-real", "80-virtual"], reason="not built for the default architectures"
)
def test_module_is_small_enough_for_a_wheel():
    assert Path(_native.native().__file__).stat().st_size < 15e6


def test_instruction_sets_can_be_chosen():
    before = showo_ext.build_info()["cpu_isa"]
    for isa in available_isas():
        with use_isa(isa):
            assert showo_ext.build_info()["cpu_isa"] == isa
    assert showo_ext.build_info()["cpu_isa"] == before
    for isa in set(ISAS) - set(available_isas()):
        with pytest.raises(ValueError, match=f"no {isa} code"):
            _native.native().set_cpu_isa(isa)
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        _native.native().set_cpu_isa("sse9")


def test_dtype_codes_are_those_of_the_module():
    z = randn(1, 2, 1, 1)
    ids = torch.empty(1, 1, dtype=torch.int64)
    for dtype, code in _native.DTYPE_CODES.items():
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            with pytest.raises(ValueError, match=f"no kernel for dtype {str(dtype).removeprefix('torch.')}"):
                _native.native().lfq_encode_cpu(**lfq_arguments(z, ids, code), num_threads=1)


def lfq_arguments(z: torch.Tensor, ids: torch.Tensor, dtype: int = 0) -> dict[str, int]:
    names = ("stride_batch", "stride_bit", "stride_row", "stride_column")
    return {
        **dict(zip(("batch", "bits", "height", "width"), z.shape)),
        **dict(zip(names, z.stride())),
        "z": z.data_ptr(),
        "ids": ids.data_ptr(),
        "dtype": dtype,
        "offset": 0,
    }


@pytest.mark.skipif(not HAS_CUDA, reason="CPU-only build")
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_launch_without_a_gpu_is_an_error_that_says_so():
    z, ids = randn(1, 2, 1, 1), torch.full((1, 1), 7)
    with pytest.raises(RuntimeError, match=r"lfq_encode_kernel: .* \(cudaError"):
        _native.native().lfq_encode_cuda(**lfq_arguments(z, ids), stream=0)
    assert ids.item() == 7


@pytest.mark.parametrize(("has_cuda", "why"), [(False, "is CPU-only"), (True, "has no CUDA kernel for it")])
def test_missing_cuda_kernel_is_explained(has_cuda, why):
    module = SimpleNamespace(build_info=lambda: {"has_cuda": has_cuda})
    expected = f"lfq_encode: this build of showo_ext {why}; for CUDA tensors use .* showo_ext.reference"
    with _native.use_emulated(module), pytest.raises(NotImplementedError, match=expected):
        showo_ext.lfq_encode(randn(1, 2, 1, 1))


def test_emulated_module_takes_the_place_of_the_cuda_kernels():
    calls = []
    module = SimpleNamespace(lfq_encode_cuda=lambda **arguments: calls.append(arguments))
    z = randn(2, 3, 4, 5)
    with _native.use_emulated(module):
        assert _native.runs_on_cuda(z)
        ids = showo_ext.lfq_encode(z, offset=1)
    assert not _native.runs_on_cuda(z)
    assert calls == [{**lfq_arguments(z, ids), "offset": 1, "stream": 0}]
