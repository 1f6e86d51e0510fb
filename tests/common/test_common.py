"""csrc/common: number conversions against torch, and the thread pool's promises."""

import ctypes
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    library = tmp_path_factory.mktemp("common") / "common_test.so"
    sources = [Path(__file__).parent / "common_test.cpp", ROOT / "csrc/common/parallel.cpp"]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", f"-I{ROOT}/csrc"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def convert(function, source: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    result = torch.empty(source.shape, dtype=target)
    function(ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(result.data_ptr()), ctypes.c_int64(source.numel()))
    return result


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, any NaN counting as the same."""
    bits = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions_agree_with_torch(common, dtype):
    stem = "half" if dtype == torch.float16 else "bfloat16"
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = convert(getattr(common, f"{stem}_to_float"), every, torch.float32)
    assert same(wide, every.float())
    # every number, its neighbours in fp32, the middle to the next one and that middle's neighbours
    bits = wide.view(torch.int32)
    middle = bits + (1 << 12 if dtype == torch.float16 else 1 << 15)
    floats = torch.cat([b + step for b in (bits, middle) for step in (-1, 0, 1)]).view(torch.float32)
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).to(torch.int32).view(torch.float32)
    floats = torch.cat([floats, anything])
    assert same(convert(getattr(common, f"float_to_{stem}"), floats, dtype), floats.to(dtype))


def count_tasks(common, tasks: int, threads: int, inner: int = 0) -> list[int]:
    counts = (ctypes.c_int64 * max(tasks, 1))()
    common.count_tasks(counts, ctypes.c_int64(tasks), threads, ctypes.c_int64(inner))
    return list(counts)[:tasks]


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 16])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_runs_once(common, tasks, threads):
    for _ in range(20):
        assert count_tasks(common, tasks, threads) == [1] * tasks


def test_nested_calls_run_too(common):
    assert count_tasks(common, 50, 3, inner=7) == [7] * 50


def test_callers_on_many_threads_do_not_disturb_each_other(common):
    results = []

    def caller():
        for _ in range(200):
            results.append(count_tasks(common, 40, 2) == [1] * 40)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 800
    assert all(results)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("bad", [0, 57, 99])
def test_exceptions_reach_the_caller_and_the_pool_lives_on(common, threads, bad):
    assert common.throw_in_task(ctypes.c_int64(100), threads, ctypes.c_int64(bad)) == 1
    assert common.throw_in_task(ctypes.c_int64(100), threads, ctypes.c_int64(-1)) == 0
    assert count_tasks(common, 100, threads) == [1] * 100


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_works_in_a_forked_child(common):
    assert count_tasks(common, 100, 3) == [1] * 100  # the parent's pool exists
    child = os.fork()
    if child == 0:
        ok = count_tasks(common, 100, 3) == [1] * 100
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert count_tasks(common, 100, 3) == [1] * 100


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_pool_that_cannot_grow_runs_serially_and_grows_once_it_can(common, without_new_threads):
    def check():
        assert count_tasks(common, 100, 3) == [1] * 100
        assert common.throw_in_task(ctypes.c_int64(100), 3, ctypes.c_int64(57)) == 1
        assert count_threads() == 1
        resource.setrlimit(resource.RLIMIT_NPROC, [resource.getrlimit(resource.RLIMIT_NPROC)[1]] * 2)
        assert count_tasks(common, 100, 3) == [1] * 100  # a thread that failed once is not serial for ever
        assert count_threads() == 3

    without_new_threads(check)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_the_pool_has_an_upper_bound(common):
    child = os.fork()  # a fresh pool, whose threads end with the child
    if child == 0:
        before = count_threads()
        ok = count_tasks(common, 100_000, 2**31 - 1) == [1] * 100_000
        os._exit(0 if ok and count_threads() - before < max(256, os.cpu_count() or 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
