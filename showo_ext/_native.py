"""The compiled module: one loader that says why it is missing, and what operators share in calling it.

How an operator uses it:

    def _cpu_impl(x):
        if (module := emulated()) is not None:      # tests run the CUDA implementation on CPU tensors
            return _cuda_impl(x, module=module)
        native().my_op_cpu(x=x.data_ptr(), dtype=DTYPE_CODES[x.dtype], ..., num_threads=torch.get_num_threads())

    def _cuda_impl(x, *, module=None):
        with cuda_call("my_op", x, module) as (module, stream):
            module.my_op_cuda(x=x.data_ptr(), ..., stream=stream)
"""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

# The numbers of showo::DType (csrc/common/dtype.h).
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float64: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.uint8: 6,
    torch.bool: 7,
}

_module: ModuleType | None = None
_module_error: ImportError | None = None
_emulated: ModuleType | None = None

try:
    _module = importlib.import_module("showo_ext._C")
except ImportError as error:
    _module_error = error


def native() -> Any:
    """The compiled module.

    Raises:
        ImportError: it was not built, or could not be loaded; the message says why and what to do.
    """
    if _module is None:
        raise ImportError(
            f"showo_ext has no working native module for Python {platform.python_version()}: {_module_error}. "
            "From a source checkout run `make dev`, else reinstall the package with `pip install --force-reinstall "
            "--no-deps <source>`; showo_ext.reference works without it."
        ) from _module_error
    return _module


def emulated() -> Any | None:
    """The module that stands in for the CUDA kernels on CPU tensors, or None outside `use_emulated`."""
    return _emulated


@contextlib.contextmanager
def use_emulated(module: ModuleType) -> Iterator[None]:
    """Inside this context CPU tensors go through the CUDA implementation of every operator, with `module`'s kernels."""
    global _emulated
    previous, _emulated = _emulated, module
    try:
        yield
    finally:
        _emulated = previous


def require_cuda_kernel(op: str, launcher: str, module: Any | None = None) -> Any:
    """The module that holds `launcher`, a CUDA kernel of operator `op`.

    Raises:
        NotImplementedError: this build has no such kernel.
    """
    module = native() if module is None else module
    if not hasattr(module, launcher):
        why = "has no CUDA kernel for it" if module.build_info()["has_cuda"] else "is CPU-only"
        raise NotImplementedError(
            f"{op}: this build of showo_ext {why}; for CUDA tensors use showo_ext.reference.{op}, "
            "or move them to the CPU"
        )
    return module


@contextlib.contextmanager
def cuda_call(
    op: str, tensor: torch.Tensor, module: Any | None = None, *, launcher: str | None = None
) -> Iterator[tuple[Any, int]]:
    """Yields (module, stream) for a launch on `tensor`'s device, which is made the current one meanwhile."""
    module = require_cuda_kernel(op, launcher or f"{op}_cuda", module)
    if tensor.device.type != "cuda":  # the emulated device
        yield module, 0
        return
    with torch.cuda.device(tensor.device):
        yield module, torch.cuda.current_stream(tensor.device).cuda_stream


def build_info() -> dict[str, Any]:
    """What this installation can do: versions, instruction set, CUDA architectures, and per operator its backends.

    Keys: version, torch, python, native (bool), native_error (str, empty if native), cpu_isa, cpu_isa_best, compiler,
    build_type, sanitized, has_cuda, cuda_version, cuda_archs (list of str), cuda_devices (list of str), and
    operators: {name: {"cpu": "native" | "missing", "cuda": "native" | "missing"}}.
    """
    from showo_ext._version import __version__

    info: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": _module is not None,
        "native_error": "" if _module_error is None else str(_module_error),
        "has_cuda": False,
        "cuda_version": "",
        "cuda_archs": [],
        "cuda_devices": [],
        "operators": {},
    }
    if _module is not None:
        native_info = dict(_module.build_info())
        native_info.pop("version")
        native_info["cuda_archs"] = [arch for arch in native_info["cuda_archs"].split(",") if arch]
        info.update(native_info)
    if torch.cuda.is_available():
        info["cuda_devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for op, launcher in LAUNCHERS.items():
        info["operators"][op] = {
            device: "native" if hasattr(_module, f"{launcher}_{device}") else "missing" for device in ("cpu", "cuda")
        }
    return info


# operator -> stem of its forward launchers; `build_info` looks for <stem>_cpu and <stem>_cuda in the module.
LAUNCHERS: dict[str, str] = {
    "omni_attention": "omni_attention_forward",
    "rope_qkv": "rope_qkv_forward",
    "lfq_encode": "lfq_encode",
    "lfq_decode": "lfq_decode",
    "vq_encode": "vq_encode",
    "codebook_lookup": "codebook_lookup_forward",
    "sample_tokens": "sample_tokens",
    "remask": "remask",
    "resample": "resample",
    "corrupt_tokens": "corrupt_tokens",
}
