"""Every check finds its planted fault, names where it is, and leaves the repaired kernel alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.ptx.compile import KERNELS
from tests.ptx.device import Finding, Out, library, set_option


@pytest.fixture(scope="module")
def faults(compiled):
    return compiled("faults.cu")


def f32(n: int) -> np.ndarray:
    return np.zeros(n, np.float32)


def i32(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


def read_only(n: int) -> np.ndarray:
    array = np.ones(n, np.float32)
    array.flags.writeable = False
    return array


# kernel: (block, arguments before `bad`, kind of finding, part of its text)
CASES = {
    "read_past_end": (64, lambda: [f32(50), f32(50), 50], "out-of-bounds", r"past the end of 'arg1' \(200"),
    "write_before_start": (32, lambda: [f32(32), 32], "out-of-bounds", r"starts 4 bytes before 'arg0'"),
    "write_read_only": (32, lambda: [f32(32), read_only(32)], "read-only", "writes to 'arg1'"),
    "misaligned_vector": (32, lambda: [f32(32), f32(132)], "misaligned", "is not a multiple of 16"),
    "misaligned_shared": (32, lambda: [f32(32)], "misaligned", "shared address [0-9]+ is not a multiple of 8"),
    "local_past_end": (32, lambda: [i32(32), np.arange(4, dtype=np.int32)], "local-out-of-bounds", "outside"),
    "unwritten_shared": (64, lambda: [f32(64)], "uninitialised-shared", "which this block has never written"),
    "unwritten_output": (32, lambda: [Out(f32(32)), Out(f32(32))], "uninitialised-global", "byte 12 of 'arg1'"),
    "race_write_read": (64, lambda: [f32(64)], "race", "no barrier in between"),
    "race_read_write": (64, lambda: [f32(64)], "race", "no barrier in between"),
    "race_write_write": (64, lambda: [f32(64)], "race", "writes shared address .*no barrier in between"),
    "race_bytes": (64, lambda: [np.zeros(64, np.uint8)], "race", "no barrier in between"),
    "race_with_atomic": (64, lambda: [i32(64)], "race", "no barrier in between"),
    "lanes_write_read": (64, lambda: [f32(64)], "lane-race", "lane 1 of the same warp wrote with no __syncwarp"),
    "lanes_read_write": (64, lambda: [f32(64)], "lane-race", "lane 1 of the same warp read with no __syncwarp"),
    "lanes_broadcast_write": (64, lambda: [f32(64)], "lane-race", "another lane of the same warp read with no"),
    "lanes_write_write": (64, lambda: [f32(64)], "lane-race", "writes shared .* lane 0 of the same warp wrote with no"),
    "lanes_with_atomic": (64, lambda: [i32(64)], "lane-race", "another lane of the same warp changed atomically"),
    "lanes_async": (64, lambda: [f32(64), f32(256)], "lane-race", "lane 1 of the same warp wrote with no __syncwarp"),
    "lanes_ldmatrix": (64, lambda: [np.zeros(64, np.uint32)], "lane-race", "reads .* lane 0 of the same warp wrote"),
    "race_named_barrier": (96, lambda: [i32(96)], "race", "warp [012] (wrote|read) with no barrier in between"),
    "async_without_wait": (32, lambda: [f32(32), f32(128)], "async-in-flight", "has not been waited for"),
    "async_wait_too_few": (32, lambda: [f32(32), f32(256)], "async-in-flight", "has not been waited for"),
    "async_without_barrier": (64, lambda: [f32(64), f32(256)], "race", "no barrier in between"),
    "divergent_barrier": (64, lambda: [f32(64)], "divergent-barrier", "reached by 7 of the warp's 32 live lanes"),
    "deadlock": (64, lambda: [f32(64)], "deadlock", "barrier 1 has 1 warps of 2; barrier 2 has 1 warps of 2"),
    "absent_lane": (32, lambda: [i32(32)], "absent-lane", "names lane 16, which is on another path"),
    "exited_lane": (32, lambda: [i32(32), 20], "absent-lane", "names lane 20, which (has exited|is on another path)"),
    "trapped": (32, lambda: [i32(32)], "trap", "executed trap"),
}  # fmt: skip


@pytest.mark.parametrize("kernel", CASES)
def test_planted_fault(faults, kernel: str) -> None:
    block, arguments, kind, text = CASES[kernel]
    faults.launch(kernel, grid=2, block=block, args=[*arguments(), 0])
    with pytest.raises(Finding) as caught:
        faults.launch(kernel, grid=2, block=block, args=[*arguments(), 1])
    report = str(caught.value)
    assert caught.value.kind == kind, report
    assert re.search(text, report), report
    # Where: kernel, PTX line, source line, block and thread.
    assert f"kernel {kernel}, ptx line " in report
    assert re.search(r"block \([01], 0, 0\)", report), report
    assert re.search(r"\((\S*/)?(faults\.cu|ptx\.cuh|\S+\.hpp|\S+\.h):\d+\)", report), report
    if kind not in ("deadlock",):
        assert re.search(r"thread \(\d+, 0, 0\) \(warp \d+, lane \d+\)", report), report


def test_source_line_is_the_faulty_one(faults) -> None:
    source = (KERNELS / "faults.cu").read_text().splitlines()
    with pytest.raises(Finding) as caught:
        faults.launch("race_read_write", grid=1, block=64, args=[f32(64), 1])
    line = int(re.search(r"faults\.cu:(\d+)\)", str(caught.value)).group(1))
    assert "tile[63 - threadIdx.x]" in source[line - 1] or "tile[threadIdx.x] = v;" in source[line - 1]


def test_shared_out_of_bounds(faults) -> None:
    faults.launch("shared_past_end", grid=1, block=32, args=[f32(32), 0], shared=128)
    with pytest.raises(
        Finding, match=r"shared-out-of-bounds: shared address 1152 .* outside the block's 128 bytes"
    ) as caught:
        faults.launch("shared_past_end", grid=1, block=32, args=[f32(32), 1], shared=128)
    assert "thread (31, 0, 0)" in str(caught.value)


def test_tensor_of_no_argument(faults) -> None:
    """Reaching another live array, one that is not passed to the launch, is a finding although it is mapped memory."""
    x, other = f32(32), f32(32)
    library().ptx_add_tensor(b"other", other.ctypes.data, other.nbytes, 1, 0)
    library().ptx_add_tensor(b"x", x.ctypes.data, x.nbytes, 1, 0)
    distance = (other.ctypes.data - x.ctypes.data) // 4
    pointer = x.ctypes.data.to_bytes(8, "little")
    try:
        faults.launch("wrong_tensor", grid=1, block=32, args=[f32(32), pointer, distance, 0])
        with pytest.raises(Finding, match=r"'other' .*not an argument of this launch"):
            faults.launch("wrong_tensor", grid=1, block=32, args=[f32(32), pointer, distance, 1])
    finally:
        library().ptx_remove_tensor(x.ctypes.data)
        library().ptx_remove_tensor(other.ctypes.data)


def test_hang(faults) -> None:
    set_option("max_steps", 100_000)
    faults.launch("hang", grid=1, block=32, args=[i32(2), 0])
    with pytest.raises(Finding, match="hang: the block has run 100000 instructions per warp"):
        faults.launch("hang", grid=1, block=32, args=[i32(2), 1])


def test_assertion(faults) -> None:
    faults.launch("asserted", grid=1, block=32, args=[i32(32), i32(32) + 1])
    with pytest.raises(Finding, match="assert"):
        faults.launch("asserted", grid=1, block=32, args=[i32(32), i32(32)])


@pytest.mark.parametrize(
    ("kernel", "grid", "block", "shared", "text"),
    [
        ("uses_shared", 1, 1025, 0, "1025 threads exceeds the limit of 1024"),
        ("uses_shared", 1, 32, 164 * 1024, "167936 bytes of dynamic shared memory exceed the 166912"),
        ("uses_shared", (1, 70000), 32, 128, "the grid exceeds"),
        ("uses_shared", 0, 32, 128, "must not be zero"),
        ("bounded", 1, 96, 0, "96 threads exceeds the kernel's launch bound of 64"),
    ],
)
def test_resource_limits(faults, kernel: str, grid, block: int, shared: int, text: str) -> None:
    with pytest.raises(Finding, match="resource-limit") as caught:
        faults.launch(kernel, grid=grid, block=block, args=[f32(2000)], shared=shared)
    assert text in str(caught.value)


def test_largest_shared_memory_is_allowed(faults) -> None:
    faults.launch("uses_shared", grid=1, block=32, args=[f32(32)], shared=163 * 1024)


def test_register_limit(faults) -> None:
    registers = faults.facts("register_hungry")["registers"]
    assert registers > 64
    arguments = [f32(100 * 1024), f32(1200)]
    faults.launch("register_hungry", grid=1, block=256, args=arguments)
    with pytest.raises(Finding, match=f"{registers} registers x 1024 threads exceed the 65536 registers"):
        faults.launch("register_hungry", grid=1, block=1024, args=arguments)


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (1, {"async-in-flight"}),
        (2, {"uninitialised-shared", "async-in-flight", "race", "lane-race"}),
        (3, {"async-in-flight", "race", "lane-race"}),
    ],
)
def test_faults_of_a_pipelined_gemm(compiled, fault: int, kinds: set[str]) -> None:
    a = b = np.zeros((64, 128), np.uint16)
    with pytest.raises(Finding) as caught:
        compiled("gemm.cu", f"-DFAULT={fault}").launch(
            "gemm_swizzled", grid=1, block=128, args=[f32(64 * 64), a, b, 64, 64, 128]
        )
    assert caught.value.kind in kinds


def test_example_of_the_documentation(compiled) -> None:
    x = np.arange(1024, dtype=np.float32)
    compiled("reverse.cu").launch("reverse", grid=4, block=256, args=[x])
    np.testing.assert_array_equal(x.reshape(4, 256), np.arange(1024).reshape(4, 256)[:, ::-1])
    with pytest.raises(Finding, match=r"shared address \d+, which"):
        compiled("reverse.cu", "-DFORGOTTEN_BARRIER").launch("reverse", grid=4, block=256, args=[x])
