"""The implementations that tests of values run: the CPU's, one per instruction set, and the CUDA kernels, emulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from showo_ext.testing import available_isas, use_isa
from tests.ptx import emulated

EMULATED = () if emulated.module_path() is None else ("emulated",)


def available_paths() -> tuple[str, ...]:
    return (*available_isas(), *EMULATED)


@contextmanager
def use_path(name: str) -> Iterator[None]:
    """Inside, operators on CPU tensors take this path."""
    if name in EMULATED:
        with emulated.emulated_device():
            yield
    else:
        with use_isa(name):
            yield
