"""What `capture` asks of torch.cuda, in which order, and what it leaves behind; without a GPU."""

import functools
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from showo.model import graphs as graphs_module
from showo.model.graphs import capture


class FakeCuda:
    """As much of torch.cuda as `capture` uses, without a GPU. events: what was asked for, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.of_thread = threading.local()
        self.pools = 0

    @property
    def stream_now(self) -> str:
        return getattr(self.of_thread, "stream", "default")

    @stream_now.setter
    def stream_now(self, stream: str) -> None:
        self.of_thread.stream = stream

    def CUDAGraph(self) -> Any:
        return type("FakeGraph", (), {"replay": lambda graph: self.events.append("replay")})()

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    def current_device(self) -> int:
        return 1

    def Stream(self, device: torch.device) -> str:
        return f"capturing on {device}"

    def current_stream(self) -> str:
        return self.stream_now

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.events.append(f"on {device}")
        yield

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before = self.stream_now
        self.stream_now = stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: Any, pool: tuple[int, int], stream: str, capture_error_mode: str) -> Iterator[None]:
        self.events.append(f"begin {capture_error_mode} in {pool}")
        self.stream_now = stream  # and stays so where the recording fails, as in torch
        yield
        self.events.append("end")
        self.stream_now = "default"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """With the private functions that torch has where it is built for CUDA."""
    cuda = FakeCuda()
    monkeypatch.setattr(graphs_module.torch, "cuda", cuda)
    monkeypatch.setattr(graphs_module, "_capture_stream", graphs_module._capture_stream.__wrapped__)
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool", "_cuda_releasePool"):
        event = functools.partial(lambda name, *args: cuda.events.append(" ".join(map(str, (name, *args)))), name)
        monkeypatch.setattr(torch._C, name, event, raising=False)
    return cuda


def test_a_recording_begins_after_a_first_call(cuda: FakeCuda) -> None:
    """Each has a workspace of cuBLAS of its own, and no garbage is collected in it."""
    result = torch.ones(3)

    def step() -> Tensor:
        cuda.events.append(f"step on {cuda.stream_now}")
        assert gc.isenabled() == (cuda.stream_now == "default")
        return result

    replay, got = capture(step, torch.device("cuda:1"))
    assert got is result
    replay()
    assert cuda.events == [
        "on cuda:1",
        "step on default",
        "_cuda_clearCublasWorkspaces",
        "begin thread_local in (0, 1)",
        "step on capturing on cuda:1",
        "end",
        "_cuda_clearCublasWorkspaces",
        "replay",
    ]
    assert gc.isenabled()


@pytest.mark.parametrize("ended", [False, True], ids=["torch < 2.12", "torch >= 2.12"])
def test_a_recording_that_fails_is_ended(cuda: FakeCuda, ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is given back, and another capture ends what the first began; unless torch has done all that."""

    def failing() -> Tensor:
        if cuda.stream_now != "default":
            raise RuntimeError("cannot be recorded")
        return torch.ones(3)

    def not_recording(device: int, pool: tuple[int, int]) -> None:
        raise RuntimeError("not currently recording to mempool_id")

    if ended:
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)
    monkeypatch.setattr(torch, "zeros", lambda count, device: torch.ones(count))
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        capture(failing, torch.device("cuda:1"))
    assert cuda.stream_now == "default"
    assert gc.isenabled()
    cleared = "_cuda_clearCublasWorkspaces"
    mended = ["_cuda_endAllocateToPool 1 (0, 1)", "_cuda_releasePool 1 (0, 1)", "begin thread_local in (0, 2)", "end"]
    expected = ["on cuda:1", cleared, "begin thread_local in (0, 1)", *([] if ended else mended), cleared]
    assert cuda.events == expected


def test_one_recording_at_a_time(cuda: FakeCuda) -> None:
    """Of all threads; the first calls of their steps need not wait for each other."""
    recording, both = threading.Semaphore(), threading.Barrier(2, timeout=20)

    def step() -> Tensor:
        if cuda.stream_now == "default":
            both.wait()
        else:
            assert recording.acquire(blocking=False)
            time.sleep(0.05)
            recording.release()
        return torch.ones(3)

    with ThreadPoolExecutor(2) as threads:
        for captured in [threads.submit(capture, step, torch.device("cuda:1")) for _ in range(2)]:
            captured.result()
    assert cuda.events.count("end") == 2


def test_without_workspaces_of_their_own_there_are_no_graphs(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    with pytest.raises(RuntimeError, match="cannot give a CUDA graph a cuBLAS workspace of its own"):
        capture(lambda: torch.ones(3), torch.device("cuda"))
    assert not [event for event in cuda.events if event.startswith("begin")]
