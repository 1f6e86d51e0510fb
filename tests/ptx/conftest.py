"""These tests need the emulator (`make emulator`), most of them nvcc too; else they are skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.ptx import compile as cuda
from tests.ptx import device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if device.library_path() is None:
        for item in items:
            if "tests/ptx" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="the PTX emulator is not built; `make emulator` builds it"))


@pytest.fixture(scope="session")
def compiled():
    """compiled("file.cu", "-DFLAG") -> a loaded module of tests/ptx/kernels; skips without nvcc."""
    if cuda.nvcc() is None:
        pytest.skip("nvcc is not on PATH, so there is no PTX to run")
    modules: dict[tuple[str, ...], device.Module] = {}

    def load(name: str, *flags: str) -> device.Module:
        if (name, *flags) not in modules:
            modules[(name, *flags)] = device.Module(cuda.compile_file(name, flags=flags))
        return modules[(name, *flags)]

    return load


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240917)


@pytest.fixture(autouse=True)
def default_options() -> Iterator[None]:
    yield
    if device.library_path() is not None:
        device.set_option("threads", 0)
        device.set_option("lines", 0)
        device.set_option("mma_rounding", 0)
        device.set_option("max_steps", 1 << 31)
