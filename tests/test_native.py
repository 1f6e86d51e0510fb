"""The loader, the instruction sets, and CUDA launchers on a machine that has no GPU."""

import math
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import showo_ext
from showo_ext import _native
from showo_ext.ops import OPERATORS
from showo_ext.testing import ISAS, available_isas, randn, use_isa

HAS_CUDA = showo_ext.build_info()["has_cuda"]


def test_build_info_describes_this_build():
    info = showo_ext.build_info()
    assert info["native"]
    assert info["native_error"] == ""
    assert info["version"] == showo_ext.__version__
    assert info["cpu_isa"] in ISAS
    assert info["cpu_isa"] == info["cpu_isa_best"]
    assert set(info["operators"]) == set(OPERATORS)
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
    """The module knows every code and no other, and reads the bits of a number as the dtype's: NaN in float16 is a
    finite number in bfloat16, and the largest bfloat16 is NaN in float16."""
    ids = torch.empty(1, 1, dtype=torch.int64)
    for dtype, code in _native.DTYPE_CODES.items():
        z = torch.tensor([math.nan, torch.finfo(dtype).max], dtype=dtype).view(1, 2, 1, 1)
        _native.native().lfq_encode_cpu(lfq_arguments(z, ids, code) | {"num_threads": 1})
        assert ids.item() == 0b01
    for code in (-1, len(_native.DTYPE_CODES)):
        with pytest.raises(TypeError, match=f"lfq_encode_cpu: dtype is {code}, expected dtype"):
            _native.native().lfq_encode_cpu(lfq_arguments(z, ids, code) | {"num_threads": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": randn(1, 2, 1, 1, dtype=torch.float64)}, "lfq_encode_cpu: z has dtype .*float64, expected .*float32"),
        ({"dtype": torch.float16}, "lfq_encode_cpu: z has dtype .*float32, expected .*float16"),
        (
            {"z": randn(1, 2, 1, 1, dtype=torch.float64), "dtype": torch.float64},
            "lfq_encode_cpu: dtype is torch.float64, expected float32, float16 or bfloat16",
        ),
        ({"ids": torch.zeros((1, 1), dtype=torch.int32)}, "lfq_encode_cpu: ids has dtype .*int32, expected .*int64"),
        ({"dtype": None}, "lfq_encode_cpu: z has dtype .*float32, expected None"),
        ({"batch": 1.0}, "lfq_encode_cpu: batch is 1.0, expected int"),
        ({"batch": torch.tensor(1)}, r"lfq_encode_cpu: batch is tensor\(1\), expected int"),
        ({"batch": 2**63}, "lfq_encode_cpu: batch is 9223372036854775808, expected int"),
        ({"length": 1}, "lfq_encode_cpu has no argument length"),
    ],
)
def test_launch_refuses_what_the_signature_does_not_say(change, message):
    z, ids = randn(1, 2, 1, 1), torch.full((1, 1), 7)
    arguments = lfq_arguments(z, ids) | {"dtype": torch.float32}
    with pytest.raises(TypeError, match=message):
        _native.launch("lfq_encode", z, **(arguments | change))
    assert ids.item() == 7
    _native.launch("lfq_encode", z, **arguments)
    assert ids.item() != 7


def test_every_argument_must_be_there_and_of_its_kind():
    """Every launcher, with numbers, no pointer, and one argument wrong at a time: nothing is launched."""
    right = {"int": 0, "float": 0.0, "bool": False, "dtype": 0, "int[2]": (0,) * 2, "int[3]": (0,) * 3}
    right |= {"int[4]": (0,) * 4, "int[6]": (0,) * 6, "int[7]": (0,) * 7}
    module = _native.native()
    assert module.signatures
    for launcher, kinds in module.signatures.items():
        arguments = {name: None if kind.endswith("*") else right[kind] for name, kind in kinds.items()}
        for name, kind in kinds.items():
            with pytest.raises(TypeError, match=f"{launcher} lacks the argument {name}"):
                getattr(module, launcher)({n: value for n, value in arguments.items() if n != name})
            for wrong in ("1", (0,), -1 if kind.endswith("*") else None):
                with pytest.raises(TypeError, match=f"{launcher}: {name} is .*, expected {re.escape(kind)}"):
                    getattr(module, launcher)(arguments | {name: wrong})


def lfq_arguments(z: torch.Tensor, ids: torch.Tensor, dtype: int = 0) -> dict[str, Any]:
    names = ("stride_batch", "stride_bit", "stride_row", "stride_column")
    return {
        **dict(zip(("batch", "bits", "height", "width"), z.shape)),
        **dict(zip(names, z.stride())),
        "z": z,
        "ids": ids,
        "dtype": dtype,
        "offset": 0,
    }


@pytest.mark.skipif(not HAS_CUDA, reason="CPU-only build")
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_launch_without_a_gpu_is_an_error_that_says_so():
    z, ids = randn(1, 2, 1, 1), torch.full((1, 1), 7)
    with pytest.raises(RuntimeError, match=r"lfq_encode_kernel: .* \(cudaError"):
        _native.native().lfq_encode_cuda(lfq_arguments(z, ids) | {"stream": 0})
    assert ids.item() == 7


@pytest.mark.parametrize(("has_cuda", "why"), [(False, "is CPU-only"), (True, "has no CUDA kernel for it")])
def test_missing_cuda_kernel_is_explained(has_cuda, why):
    module = SimpleNamespace(build_info=lambda: {"has_cuda": has_cuda})
    expected = f"lfq_encode_cuda: this build of showo_ext {why}; for CUDA tensors use .* showo_ext.reference"
    with _native.use_emulated(module), pytest.raises(NotImplementedError, match=expected):
        showo_ext.lfq_encode(randn(1, 2, 1, 1))


def test_emulated_module_takes_the_place_of_the_cuda_kernels():
    calls = []
    signatures = {"lfq_encode_cuda": _native.native().signatures["lfq_encode_cpu"]}
    module = SimpleNamespace(lfq_encode_cuda=calls.append, signatures=signatures)
    z = randn(2, 3, 4, 5)
    with _native.use_emulated(module):
        assert _native.runs_on_cuda(z)
        ids = showo_ext.lfq_encode(z, offset=1)
    assert not _native.runs_on_cuda(z)
    expected = {**lfq_arguments(z, ids), "offset": 1, "stream": 0}
    assert [pointers(arguments) for arguments in calls] == [pointers(expected)]


def pointers(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.data_ptr() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


def test_tensors_live_until_the_launcher_returns():
    made = [torch.empty((1, 1), dtype=torch.int64)]
    reference, lives = weakref.ref(made[0]), []
    module = SimpleNamespace(
        lfq_encode_cuda=lambda arguments: lives.append(reference() is not None),
        signatures={"lfq_encode_cuda": {"ids": "int64*", "z": "dtype*", "dtype": "dtype"}},
    )
    z = randn(1, 2, 1, 1)
    with _native.use_emulated(module):
        _native.launch("lfq_encode", z, z=z, ids=made.pop(), dtype=z.dtype)
    assert lives == [True]
    assert reference() is None
