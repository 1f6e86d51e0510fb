"""Fixtures of several folders."""

import pytest
import torch


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "emulated"])
def device(request):
    """The device to put tensors on; inside the test its CUDA kernels run."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        yield "cuda"
        return
    emulated = pytest.importorskip("tests.ptx.emulated")
    if emulated.module_path() is None:
        pytest.skip("the PTX emulator is not built; `make emulator` builds it")
    with emulated.emulated_device():
        yield "cpu"
