"""The emulated device from Python: load device code, launch kernels on numpy arrays, read what they did.

    module = Module(compile_file("reduce.cu"))
    counters = module.launch("sum", grid=4, block=128, args=[x, Out(y), x.size])

A finding (out-of-bounds access, race, ...) raises `Finding`; its `kind` is the first word of the report.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GUARD = 512  # bytes before and after every array, never part of a tensor
LIBRARY = ROOT / "build" / "dev" / "emulator" / "libshowo_ptx.so"


class Finding(RuntimeError):
    """Something that a kernel did wrong. The text names kernel, PTX line, source line, block, thread and address."""

    @property
    def kind(self) -> str:
        return str(self).split(":", 1)[0]


class EmulatorError(RuntimeError):
    """The emulator cannot run the code, for example because it does not know an instruction."""


def library_path() -> Path | None:
    """The emulator's library, or None if it is not built."""
    return LIBRARY if LIBRARY.exists() else None


@functools.cache
def library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise EmulatorError("the emulator is not built; run `make emulator`")
    lib = ctypes.CDLL(str(path))
    u64, i32, text, pointer = ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ptx_error": (text, []),
        "ptx_load": (pointer, [text, ctypes.c_size_t]),
        "ptx_unload": (None, [pointer]),
        "ptx_entries": (text, [pointer]),
        "ptx_facts": (text, [pointer, text]),
        "ptx_params": (text, [pointer, text]),
        "ptx_variable": (u64, [pointer, text]),
        "ptx_launch": (i32, [pointer, text, pointer, pointer, u64, pointer, i32]),
        "ptx_add_tensor": (None, [text, u64, u64, i32, i32]),
        "ptx_remove_tensor": (None, [u64]),
        "ptx_clear_tensors": (None, []),
        "ptx_add_piece": (None, [u64, u64, u64]),
        "ptx_mark_written": (None, [u64, u64]),
        "ptx_is_tensor": (i32, [u64, u64]),
        "ptx_take_records": (text, []),
        "ptx_launched": (text, []),
        "ptx_forget_launches": (None, []),
        "ptx_registered": (text, []),
        "ptx_last_finding": (text, []),
        "ptx_clear_finding": (None, []),
        "ptx_take_calls": (text, []),
        "ptx_fail_call": (None, [ctypes.c_int64]),
        "ptx_set_option": (i32, [text, ctypes.c_int64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def set_option(name: str, value: int) -> None:
    """threads (0: all cores), max_steps (instructions per warp before a block counts as hung), lines (0 or 1),
    mma_rounding (an index of MMA_ROUNDINGS)."""
    if not library().ptx_set_option(name.encode(), value):
        raise ValueError(f"unknown option {name!r}")


# How an mma rounds each partial sum. Tensor cores have a rounding of their own that nobody documents; what depends on
# no more than a bound of the error comes out right with each of these.
MMA_ROUNDINGS = ("nearest", "toward zero", "up", "down")


@contextlib.contextmanager
def mma_rounding(name: str) -> Iterator[None]:
    """Inside, every mma rounds its sums in this way."""
    set_option("mma_rounding", MMA_ROUNDINGS.index(name))
    try:
        yield
    finally:
        set_option("mma_rounding", 0)


def _fail() -> None:
    message = library().ptx_error().decode()
    raise EmulatorError(message[7:]) if message.startswith("error: ") else Finding(message)


@dataclass
class Out:
    """An output array: its bytes count as never written until the kernel writes them."""

    array: np.ndarray


@dataclass(frozen=True)
class Counters:
    """What one launch did."""

    data: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def warps(self, name: str) -> int:
        """Warp-instructions of a class ("mma", "shared", ...)."""
        return int(self.data["classes"].get(name, [0, 0])[0])

    def tensor(self, name: str) -> dict[str, int]:
        return next(t for t in self.data["tensors"] if t["name"] == name)

    @property
    def bank_conflicts(self) -> int:
        """Shared-memory wavefronts beyond the conflict-free minimum."""
        return int(self.data["shared_wavefronts"][0] - self.data["shared_wavefronts"][1])


def take_records() -> list[Counters]:
    """Counters of every launch since the last call, also of those that host code made."""
    return [Counters(record) for record in json.loads(library().ptx_take_records().decode())]


def _triple(size: int | Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    values = (size,) if isinstance(size, int) else tuple(size)
    return (ctypes.c_uint32 * 3)(*values, *([1] * (3 - len(values))))


class _Guarded:
    """A copy of an array with guard zones around it, registered as a tensor while it lives."""

    def __init__(self, name: str, array: np.ndarray, initialised: bool) -> None:
        self.array = array
        self.store = np.full(array.nbytes + 2 * GUARD + 256, 0xA5, np.uint8)
        offset = GUARD + -(self.store.ctypes.data + GUARD) % 256
        self.bytes = self.store[offset : offset + array.nbytes]
        self.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.address = self.bytes.ctypes.data
        library().ptx_add_tensor(name.encode(), self.address, array.nbytes, initialised, not array.flags.writeable)

    def finish(self) -> None:
        library().ptx_remove_tensor(self.address)
        if self.array.flags.writeable:
            self.array[...] = self.bytes.view(self.array.dtype).reshape(self.array.shape)


class Module:
    """Device code: PTX text or a fat binary."""

    def __init__(self, image: bytes | str) -> None:
        self._image = image.encode() if isinstance(image, str) else image
        self._handle = library().ptx_load(self._image, len(self._image))
        if not self._handle:
            _fail()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().ptx_unload(self._handle)

    def entries(self) -> list[str]:
        return str(library().ptx_entries(self._handle).decode()).split()

    def entry(self, name: str) -> str:
        """The full name of the kernel `name`, which may be unmangled if only one kernel fits."""
        entries = self.entries()
        fitting = [e for e in entries if e == name] or [e for e in entries if f"{len(name)}{name}" in e]
        if len(fitting) != 1:
            raise KeyError(f"{name}: fits {fitting or entries}")
        return fitting[0]

    def facts(self, kernel: str) -> dict[str, int]:
        text = library().ptx_facts(self._handle, self.entry(kernel).encode())
        if text is None:
            _fail()
        names = ("registers", "live_registers", "static_shared", "frame_bytes", "instructions")
        return dict(zip(names, map(int, text.split()), strict=True))

    def launch(
        self,
        kernel: str,
        *,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
    ) -> Counters:
        """Runs a kernel. Arrays are passed as pointers and updated afterwards; numbers take their parameter's size."""
        name = self.entry(kernel)
        sizes = library().ptx_params(self._handle, name.encode())
        if sizes is None:
            _fail()
        widths = [int(s) for s in sizes.split()]
        guarded: list[_Guarded] = []
        values: list[bytes] = []
        for i, (arg, width) in enumerate(zip(args, widths, strict=True)):
            if isinstance(arg, Out | np.ndarray):
                array = arg.array if isinstance(arg, Out) else arg
                guarded.append(_Guarded(f"arg{i}", array, not isinstance(arg, Out)))
                values.append(guarded[-1].address.to_bytes(8, "little"))
            elif isinstance(arg, int | np.integer):
                values.append(int(arg).to_bytes(width, "little", signed=int(arg) < 0))
            elif isinstance(arg, float | np.floating):
                values.append((np.float32 if width == 4 else np.float64)(arg).tobytes())
            else:
                values.append(bytes(arg))
            if len(values[-1]) != width:
                raise TypeError(f"argument {i} of {name} has {len(values[-1])} bytes, the parameter {width}")
        buffers = [ctypes.create_string_buffer(v, len(v)) for v in values]
        pointers = (ctypes.c_void_p * len(buffers))(*[ctypes.addressof(b) for b in buffers])
        take_records()
        ok = library().ptx_launch(
            self._handle, name.encode(), _triple(grid), _triple(block), shared, pointers, len(buffers)
        )
        for g in guarded:
            g.finish()
        if not ok:
            _fail()
        return take_records()[-1]
