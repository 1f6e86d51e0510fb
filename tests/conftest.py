"""Fixtures of several folders."""

import os
import resource
import threading
import traceback
from collections.abc import Callable

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--write-kernel-table", action="store_true", help="write docs/kernels.md anew")
    parser.addoption("--write-screenshot", action="store_true", help="write docs/images/page.png anew")


# Files that take a minute or more. They begin first: a worker that takes one of them last leaves the others idle.
_LONG = ("test_parallel", "test_recipe_whole", "test_soak", "test_faults", "test_install", "test_unseen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in _LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory):
    """No test writes into the user's folder of caches, nor reads what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
    return "cuda"


@pytest.fixture
def without_new_threads() -> Callable[[Callable[[], None]], None]:
    """without_new_threads(check) calls `check` in a child process that the system gives no thread beyond its first.

    The limit is a soft one: `check` may lift it with `resource.setrlimit`. The test is skipped where it has no effect.
    """
    no_effect = 77

    def begin_child(check: Callable[[], None]) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        if os.getuid() == 0:
            os.setuid(65534)  # the limit does not hold for root
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            check()
        else:
            os._exit(no_effect)

    def run(check: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            try:
                begin_child(check)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == no_effect:
            pytest.skip("a limit on threads (RLIMIT_NPROC) has no effect here")
        assert code == 0, f"the child ended with {code}"

    return run


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu), "emulated"])
def any_device(request):
    """As `device`, and the CPU with its own kernels."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    return request.param
