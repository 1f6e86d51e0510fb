"""Counters, the profile table, and how fast the emulator itself is."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.ptx import profile
from tests.ptx.device import Module, Out, set_option
from tests.ptx.snippets import HEADER


def copy_module(shift: str) -> Module:
    """Kernel `op(out, in)` of one warp: lane i loads a word at 4 * (i << shift) bytes and stores it at 4 * i."""
    return Module(f"""{HEADER}
.visible .entry op(.param .u64 out, .param .u64 in)
{{ .reg .b64 %d<4>; .reg .b32 %r<4>;
mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, {shift};
ld.param.u64 %d0, [in]; mad.wide.u32 %d1, %r1, 4, %d0; ld.global.b32 %r2, [%d1];
ld.param.u64 %d2, [out]; mad.wide.u32 %d3, %r0, 4, %d2; st.global.b32 [%d3], %r2; ret; }}
""")


@pytest.mark.parametrize(("shift", "sectors"), [(0, 4), (1, 8), (2, 16), (3, 32), (4, 32)])
def test_sectors(shift: int, sectors: int) -> None:
    x = np.arange(32 << shift, dtype=np.uint32)
    out = np.zeros(32, np.uint32)
    counters = copy_module(str(shift)).launch("op", grid=1, block=32, args=[Out(out), x])
    np.testing.assert_array_equal(out, x[:: 1 << shift])
    assert counters.global_sectors == [sectors + 4, 4 + 4]
    assert counters.tensor("arg1")["read"] == 128
    assert counters.tensor("arg0")["written"] == 128


def shared_module(words: int) -> Module:
    """Kernel `op(index)` of one warp: lane i loads `words` words from shared address 4 * index[i]."""
    registers = ", ".join(f"%v{i}" for i in range(words))
    load = f"ld.shared.v{words}.b32 {{{registers}}}" if words > 1 else "ld.shared.b32 %v0"
    fill = "".join(f"st.shared.b32 [%r3+{i * 128}], %r0;\n" for i in range(32))
    return Module(f"""{HEADER}
.visible .entry op(.param .u64 index)
{{ .reg .b64 %d<2>; .reg .b32 %r<5>; .reg .b32 %v<4>; .shared .align 16 .b8 tile[4096];
mov.u32 %r0, %tid.x; mov.u32 %r1, tile; shl.b32 %r2, %r0, 2; add.s32 %r3, %r1, %r2;
{fill} bar.sync 0;
ld.param.u64 %d0, [index]; mad.wide.u32 %d1, %r0, 4, %d0; ld.global.b32 %r4, [%d1]; mad.lo.s32 %r4, %r4, 4, %r1;
{load}, [%r4]; ret; }}
""")


LANES = np.arange(32)


@pytest.mark.parametrize(
    ("words", "index", "wavefronts", "least"),
    [
        (1, LANES, 1, 1),
        (1, LANES * 2, 2, 1),
        (1, LANES * 32, 32, 1),
        (1, LANES * 33 % 1024, 1, 1),
        (1, LANES * 0 + 7, 1, 1),  # broadcast
        (1, LANES // 2 * 32, 16, 1),  # pairs share a word
        (2, LANES * 2, 2, 2),
        (2, LANES * 4, 4, 2),
        (4, LANES * 4, 4, 4),
        (4, LANES * 32 % 1024, 32, 4),
    ],
)
def test_wavefronts(words: int, index: np.ndarray, wavefronts: int, least: int) -> None:
    counters = shared_module(words).launch("op", grid=1, block=32, args=[index.astype(np.uint32)])
    assert counters.shared_wavefronts == [32 + wavefronts, 32 + least]


def test_classes_and_divergence(compiled) -> None:
    x = np.arange(1, 33, dtype=np.int32)
    out = np.zeros(32, np.int32)
    counters = compiled("basics.cu").launch("early_exit", grid=1, block=32, args=[Out(out), x * 5])
    assert counters.divergent_branches == 2
    assert counters.warps("shuffle") == 2
    assert sum(w for w, _ in counters.classes.values()) == counters.warp_instructions
    assert counters.warp_instructions <= counters.thread_instructions <= 32 * counters.warp_instructions


def test_report(compiled, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["gemm_plain", "m=64", "n=64", "k=64", "--lines", "20"]) == 0
    text = capsys.readouterr().out
    assert "gemm_plain" in text
    assert "shared wavefronts: 1,024 for a minimum of 256 (4.00x)" in text
    assert "mma: 524,288 FLOP" in text
    assert "arg1: 8,192 bytes, 8,192 read, 0 written" in text
    assert "kernels/ptx.cuh:" in text
    assert "too many)" in text


def test_list_of_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main([]) == 0
    assert "lfq_encode        batch=2" in capsys.readouterr().out


def test_readable_names() -> None:
    mangled = (
        "_ZN5showo38_GLOBAL__N__7183482f_6_lfq_cu_a659bea617"
        "lfq_encode_kernelINS0_7F32BitsEjLi4EEEvNS_9LfqParamsENS0_8GeometryE"
    )
    assert profile.readable(mangled) == "lfq_encode_kernel<NS0_7F32BitsEjLi4E>"
    assert profile.readable("gemm_plain") == "gemm_plain"


def test_speed(compiled) -> None:
    """At least 100 million thread-instructions per second and core, all checks on (CPU time, best of a few)."""
    m = n = 256
    k = 512
    module = compiled("gemm.cu")
    a, b = np.zeros((m, k), np.uint16), np.zeros((n, k), np.uint16)
    set_option("threads", 1)
    best = 0.0
    for _ in range(4):
        start = time.process_time()
        args = [Out(np.zeros((m, n), np.float32)), a, b, m, n, k]
        counters = module.launch("gemm_swizzled", grid=(n // 64, m // 64), block=128, args=args)
        best = max(best, counters.thread_instructions / (time.process_time() - start))
        if best > 100e6:
            break
    # A machine that is busy, or shares its cores, is slower; half the figure still catches a real loss of speed.
    assert best > 50e6, f"{best / 1e6:.0f} million thread-instructions per second"


def test_attention_with_a_softcap(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of docs/kernels.md prints the counts there: as many products, more special functions."""
    pytest.importorskip("tests.ptx.emulated").native_module()
    sizes = {"rows": 64, "columns": 64, "dim": 32}
    plain, capped = (profile.omni_attention(**sizes, softcap=softcap) for softcap in (0.0, 50.0))
    for before, after in zip(plain[1:], capped[1:], strict=True):
        assert before.warps("mma") == after.warps("mma")
        assert (before.warps("special") < after.warps("special")) == ("stats" not in before.kernel)
    assert profile.main(["omni_attention", *(f"{name}={size}" for name, size in sizes.items()), "softcap=50"]) == 0
    assert f"{capped[1].warp_instructions:,}" in capsys.readouterr().out
