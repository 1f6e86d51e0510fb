"""Fixtures of several folders."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--write-kernel-table", action="store_true", help="write docs/kernels.md anew")


@pytest.fixture
def emulated():
    """The emulated device; inside the test the CUDA kernels of all operators run on it, with CPU tensors."""
    module = pytest.importorskip("tests.ptx.emulated")
    if module.module_path() is None:
        pytest.skip("the PTX emulator is not built; `make emulator` builds it")
    with module.emulated_device() as device:
        yield device


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "emulated"])
def device(request):
    """The device to put tensors on; inside the test its CUDA kernels run."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"
