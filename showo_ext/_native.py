"""The compiled module: one loader that says why it is missing, and the one way in which operators call it.

Here `_C` is a pybind11 module; in the kernel package (docs/kernel-package.md) a Python module of the same functions.

An operator names a launcher and its arguments, as csrc/bindings declares them:

    launch("my_op", x, x=x, out=out, dtype=x.dtype, num_rows=x.shape[0])

`launch` takes the CPU or the CUDA launcher, whichever `x` asks for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import platform
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | torch.dtype | float | Sequence[int] | None  # of a launcher

# The numbers of showo::DType (csrc/common/dtype.h).
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
}

_module: ModuleType | None = None
_module_error: ImportError | None = None
_emulated: Any | None = None

try:
    _module = importlib.import_module("._C", __package__)
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


@contextlib.contextmanager
def use_emulated(module: Any | None) -> Iterator[None]:
    """Inside this context CPU tensors go to the CUDA kernels of `module`, which run without a GPU; None ends that."""
    global _emulated
    previous, _emulated = _emulated, module
    try:
        yield
    finally:
        _emulated = previous


def runs_on_cuda(tensor: Tensor) -> bool:
    """Whether operators on `tensor` run their CUDA kernels: on a CUDA device, and on a CPU inside `use_emulated`."""
    return tensor.is_cuda or _emulated is not None


def launch(name: str, tensor: Tensor, **arguments: Argument) -> None:
    """Runs the launcher `name`_cpu or `name`_cuda, whichever `tensor` asks for, on its device.

    Args:
        name: of the launcher, without its ending.
        tensor: its device decides; see `runs_on_cuda`.
        arguments: what the launcher takes, but for the number of threads and the stream. It takes tensors by their
            pointers, None as an absent one; they stay alive until the launcher returns.

    Raises:
        TypeError: a tensor's dtype is not what the launcher reads; an argument is missing, unknown or of another type.
        NotImplementedError: this build has no such CUDA kernel.
        ValueError, NotImplementedError, RuntimeError: the launcher refuses its arguments, or the launch failed.
    """
    if not runs_on_cuda(tensor):
        _native_launcher(name, "cpu").run(arguments, "num_threads", torch.get_num_threads())
    elif tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            stream = torch.cuda.current_stream(tensor.device).cuda_stream
            _native_launcher(name, "cuda").run(arguments, "stream", stream)
    else:
        _Launcher(_emulated, f"{name}_cuda").run(arguments, "stream", 0)


class _Launcher:
    """A function of the module, and what its signature (csrc/bindings/fields.h) says about tensors and dtypes."""

    def __init__(self, module: Any, name: str) -> None:
        function = getattr(module, name, None)
        if function is None:
            why = "has no CUDA kernel for it" if module.build_info()["has_cuda"] else "is CPU-only"
            raise NotImplementedError(
                f"{name}: this build of showo_ext {why}; for CUDA tensors use the operator's twin in "
                "showo_ext.reference, or move them to the CPU"
            )
        kinds: dict[str, str] = module.signatures[name]
        self._name, self._function = name, function
        self._dtypes = [key for key, kind in kinds.items() if kind == "dtype"]
        # argument, and the dtype of its tensor or the name of the argument that tells that dtype
        elements = {key: kind[:-1] for key, kind in kinds.items() if kind.endswith("*")}
        self._pointers = [(key, None if e in kinds else getattr(torch, e), e) for key, e in elements.items()]

    def run(self, arguments: dict[str, Argument], place: str, where: int) -> None:
        values: dict[str, Any] = {**arguments, place: where}
        for key, dtype, told_by in self._pointers:
            tensor = values.get(key)
            if tensor is not None:
                expected = dtype or arguments.get(told_by)
                if tensor.dtype is not expected:
                    raise TypeError(f"{self._name}: {key} has dtype {tensor.dtype}, expected {expected}")
        for key in self._dtypes:
            given: Any = values.get(key)
            if given not in DTYPE_CODES:
                raise TypeError(f"{self._name}: {key} is {given}, expected float32, float16 or bfloat16")
            values[key] = DTYPE_CODES[given]
        self._function(values)


@functools.cache
def _native_launcher(name: str, device: str) -> _Launcher:
    return _Launcher(native(), f"{name}_{device}")


def build_info() -> dict[str, Any]:
    """What this installation can do: versions, instruction set, CUDA architectures, and per operator its backends.

    Keys: version, torch, python, native (bool), native_error (str, empty if native), cpu_isa, cpu_isa_best, compiler,
    build_type, sanitized, has_cuda, cuda_version, cuda_archs (list of str), cuda_devices (list of str), and
    operators: {name: {"cpu": "native" | "missing", "cuda": "native" | "torch" | "missing"}}, where "torch" is an
    operator that torch's own make up on that device.
    """
    from showo_ext._version import __version__
    from showo_ext.ops import OPERATORS

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
    for op, rooms in OPERATORS.items():
        backends = info["operators"][op] = {
            device: "native" if hasattr(_module, f"{rooms.launcher}_{device}") else "missing"
            for device in ("cpu", "cuda")
        }
        if rooms.cuda == "torch":
            backends["cuda"] = "torch"
    return info
