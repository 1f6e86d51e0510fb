"""Runs the CUDA implementation of the torch operators on CPU tensors, through the emulated device.

    with emulated_device() as device:
        ids = showo_ext.lfq_encode(z)          # z is a CPU tensor; the CUDA kernels run
    for counters in device.records(): ...

Inside the context every tensor that a launcher is given is known byte by byte, and `torch.empty` and its relatives
return memory that counts as never written, with guard zones on both sides.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from tests.ptx.device import GUARD, LIBRARY, Counters, Finding, library, take_records

SENTINEL = 0xA5


def module_path() -> Path | None:
    """The extension linked against the emulated runtime, or None if it is not built."""
    found = sorted(LIBRARY.parent.glob("_C_emulated*.so"))
    return found[0] if found else None


@functools.cache
def native_module() -> Any:
    """_C_emulated: the extension's own objects and the template's, registered with the emulator."""
    path = module_path()
    if path is None:
        raise ImportError("_C_emulated is not built; run `make emulator`")
    library()
    loader = importlib.machinery.ExtensionFileLoader("_C_emulated", str(path))
    spec = importlib.util.spec_from_file_location("_C_emulated", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def registered_kernels() -> list[str]:
    """Entry points in the PTX of every kernel file of the extension; the template of tests/template is none of it."""
    native_module()
    names = library().ptx_registered()
    if names is None:
        raise RuntimeError(library().ptx_error().decode())
    return sorted(name for name in names.decode().split() if "scale_rows_" not in name)


def launched_kernels() -> list[dict[str, Any]]:
    """Kernels launched since `ptx_forget_launches`, by name, with the most threads and shared memory of a launch."""
    return json.loads(library().ptx_launched().decode())


class RuntimeCall(NamedTuple):
    """A call of the CUDA runtime that may fail: a launch, a memset, the setting of an attribute."""

    launcher: str
    function: str
    stream: int


@dataclass
class Memory:
    """A storage that the device knows. It does not keep the storage alive: a test may make more than fits in memory."""

    storage: StorageWeakRef
    address: int  # of its tensor, inside guard zones if there are any
    bytes: int
    name: str
    fresh: bool  # made by `torch.empty`: what still holds the sentinel counts as never written
    registered: bool = False  # with the emulator


class EmulatedDevice:
    """Stands in for the module _C_emulated: registers the tensors of each call, turns findings into exceptions."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._memory: dict[int, Memory] = {}  # by the address of the storage
        self._records: list[Counters] = []
        self.stream = 0  # what every launcher is given
        self.calls: list[RuntimeCall] = []  # of all launchers so far

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._module, name)
        return functools.partial(self._call, attribute) if name.endswith("_cuda") else attribute

    def records(self) -> list[Counters]:
        """Counters of every launch so far."""
        return self._records

    def register_sparse(self, tensor: torch.Tensor) -> None:
        """Makes known a tensor whose strides leave gaps of gigabytes: each row of its last dim is its own piece."""
        self._forget(self._gone())
        size = tensor.element_size()
        offsets = [0]
        for length, stride in zip(tensor.shape[:-1], tensor.stride()):
            offsets = [offset + i * stride for offset in offsets for i in range(length)]
        pieces = [tensor.data_ptr() + offset * size for offset in offsets]
        row = tensor.shape[-1] * size
        library().ptx_add_tensor(_name(tensor).encode(), pieces[0], row, True, 0)
        for piece in pieces[1:]:
            library().ptx_add_piece(pieces[0], piece, row)
        storage = tensor.untyped_storage()
        memory = Memory(StorageWeakRef(storage), pieces[0], row, _name(tensor), fresh=False, registered=True)
        self._memory[storage.data_ptr()] = memory

    def _call(self, launcher: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        self._register([x for x in arguments.values() if isinstance(x, torch.Tensor) and x.data_ptr()])
        library().ptx_clear_finding()
        library().ptx_take_calls()
        try:
            result = launcher(arguments | {"stream": self.stream})
        except RuntimeError as error:
            report = library().ptx_last_finding().decode()
            if report and not report.startswith("error: "):
                raise Finding(report) from error
            raise
        finally:
            self._records += take_records()
            calls = json.loads(library().ptx_take_calls().decode())
            self.calls += [RuntimeCall(launcher.__name__, name, stream) for name, stream in calls]
        return result

    def _register(self, tensors: list[torch.Tensor]) -> None:
        """Registers the storages of these tensors."""
        self._forget(self._gone())
        for tensor in tensors:
            storage = tensor.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            if start not in self._memory:
                self._memory[start] = Memory(StorageWeakRef(storage), start, size, _name(tensor), fresh=False)
            memory = self._memory[start]
            if not memory.registered:
                pristine = memory.fresh and bool((_bytes(storage) == SENTINEL).all())
                library().ptx_add_tensor(memory.name.encode(), memory.address, memory.bytes, not pristine, 0)
                memory.registered = True

    def _gone(self) -> list[int]:
        """Of storages that nobody keeps any more. New ones may come to the same addresses, and inherit nothing."""
        return [start for start, memory in self._memory.items() if memory.storage.expired()]

    def _forget(self, starts: list[int]) -> None:
        for memory in map(self._memory.pop, starts):
            if memory.registered:
                library().ptx_remove_tensor(memory.address)

    def _empty(self, original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """`original`'s result in guarded, never-written memory."""
        like = original(*args, **kwargs)
        if (
            like.device.type != "cpu"
            or like.layout is not torch.strided
            or like.is_meta
            or type(like) is not torch.Tensor
        ):
            return like
        span = sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) + 1 if like.numel() else 0
        guard = GUARD // like.element_size()
        store = torch.full(((span + 2 * guard) * like.element_size(),), SENTINEL, dtype=torch.uint8)
        result = store.view(like.dtype).as_strided(like.shape, like.stride(), guard).requires_grad_(like.requires_grad)
        storage = result.untyped_storage()
        self._forget(self._gone())
        address, size = result.data_ptr(), span * like.element_size()
        self._memory[storage.data_ptr()] = Memory(StorageWeakRef(storage), address, size, _name(result), fresh=True)
        return result

    def close(self) -> None:
        self._forget(list(self._memory))


def _name(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.tensor([], dtype=torch.uint8).set_(storage)  # torch.empty would make guarded memory


@contextlib.contextmanager
def emulated_device(*, guarded: bool = True) -> Iterator[EmulatedDevice]:
    """Inside, CPU tensors go through the CUDA implementation of every showo_ext operator.

    guarded: False leaves torch.empty as it is: guard zones are in the way of opcheck and of tracing.
    """
    from showo_ext._native import use_emulated

    device = EmulatedDevice(native_module())
    take_records()
    patched: list[tuple[Any, str]] = []
    if guarded:
        patched = [*((torch, name) for name in ("empty", "empty_like", "empty_strided")), (torch.Tensor, "new_empty")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in patched]
    for owner, name, original in originals:
        function = functools.partial(device._empty, original)
        setattr(owner, name, _method(function) if owner is torch.Tensor else function)
    try:
        with use_emulated(device):
            yield device
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        device.close()


@contextlib.contextmanager
def backend(name: str) -> Iterator[EmulatedDevice | None]:
    """For tests parametrised over backends: "cpu" runs the operators as they are, "emulated" their CUDA kernels."""
    if name == "cpu":
        yield None
    elif name == "emulated":
        with emulated_device() as device:
            yield device
    else:
        raise ValueError(f"unknown backend {name!r}, expected 'cpu' or 'emulated'")


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method
