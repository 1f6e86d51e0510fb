"""Fragment layouts of ldmatrix and mma.sync, element by element.

The tables below are typed from the PTX ISA document, section "Warp Level Matrix Multiply-Accumulate Instructions"
(matrix fragments for mma.m16n8k16 and mma.m16n8k8, and ldmatrix), and share nothing with the emulator's source.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.device import Finding, Module, Out, mma_rounding
from tests.ptx.snippets import HEADER

LANES = range(32)


def group(lane: int) -> int:
    return lane >> 2


def thread(lane: int) -> int:
    return lane % 4


# (row, column) of element i of a thread's fragment, as the document words it.


def a_m16n8k16(lane: int, i: int) -> tuple[int, int]:
    row = group(lane) if 0 <= i < 2 or 4 <= i < 6 else group(lane) + 8
    column = thread(lane) * 2 + (i & 1) if i < 4 else thread(lane) * 2 + (i & 1) + 8
    return row, column


def b_m16n8k16(lane: int, i: int) -> tuple[int, int]:
    row = thread(lane) * 2 + (i & 1) if i < 2 else thread(lane) * 2 + (i & 1) + 8
    return row, group(lane)


def a_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    return (group(lane) if i < 2 else group(lane) + 8), thread(lane) * 2 + (i & 1)


def b_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    return thread(lane) * 2 + i, group(lane)


def a_tf32_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    row = {0: group(lane), 1: group(lane) + 8, 2: group(lane), 3: group(lane) + 8}[i]
    column = {0: thread(lane), 1: thread(lane), 2: thread(lane) + 4, 3: thread(lane) + 4}[i]
    return row, column


def b_tf32_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    return {0: thread(lane), 1: thread(lane) + 4}[i], group(lane)


def a_tf32_m16n8k4(lane: int, i: int) -> tuple[int, int]:
    return {0: group(lane), 1: group(lane) + 8}[i], thread(lane)


def b_tf32_m16n8k4(lane: int, i: int) -> tuple[int, int]:
    return thread(lane), group(lane)


def c_m16n8(lane: int, i: int) -> tuple[int, int]:
    return (group(lane) if i < 2 else group(lane) + 8), thread(lane) * 2 + (i & 1)


SHAPES = {
    # instruction: (k, halves per register, A table, B table)
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, 2, a_m16n8k16, b_m16n8k16),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, 2, a_m16n8k16, b_m16n8k16),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (8, 2, a_m16n8k8, b_m16n8k8),
    "m16n8k8.row.col.f32.f16.f16.f32": (8, 2, a_m16n8k8, b_m16n8k8),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, 1, a_tf32_m16n8k8, b_tf32_m16n8k8),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (4, 1, a_tf32_m16n8k4, b_tf32_m16n8k4),
}


def mma_module(instruction: str, a: int, b: int, c: int = 4) -> Module:
    """Kernel `op(out, a, b, c)`: one warp per block; fragments lie in memory as [block][register][lane] words."""

    def load(name: str, count: int) -> str:
        lines = (
            f"ld.param.u64 %d0, [{name}]; mad.wide.u32 %d1, %r0, {count * 128}, %d0; mad.wide.u32 %d1, %r1, 4, %d1;\n"
        )
        return lines + "".join(f"ld.global.b32 %{name}{i}, [%d1+{i * 128}];\n" for i in range(count))

    def names(prefix: str, count: int) -> str:
        return ", ".join(f"%{prefix}{i}" for i in range(count))

    stores = "".join(f"st.global.b32 [%d1+{i * 128}], %o{i};\n" for i in range(c))
    return Module(f"""{HEADER}
.visible .entry op(.param .u64 out, .param .u64 a, .param .u64 b, .param .u64 c)
{{ .reg .b64 %d<2>; .reg .b32 %r<2>; .reg .b32 %a<{a}>; .reg .b32 %b<{b}>; .reg .b32 %c<{c}>; .reg .b32 %o<{c}>;
mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x;
{load("a", a)} {load("b", b)} {load("c", c)}
mma.sync.aligned.{instruction} {{{names("o", c)}}}, {{{names("a", a)}}}, {{{names("b", b)}}}, {{{names("c", c)}}};
ld.param.u64 %d0, [out]; mad.wide.u32 %d1, %r0, {c * 128}, %d0; mad.wide.u32 %d1, %r1, 4, %d1;
{stores} ret; }}
""")


def encode(x: np.ndarray, instruction: str) -> np.ndarray:
    if "bf16" in instruction:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)
    if "f16" in instruction:
        return x.astype(np.float16).view(np.uint16).astype(np.uint32)
    return x.astype(np.float32).view(np.uint32)


def fragment(matrix: np.ndarray, table, per_register: int, instruction: str) -> np.ndarray:
    """[register][lane] words of a matrix."""
    elements = matrix.size // 32
    bits = encode(matrix, instruction)
    words = np.zeros((elements // per_register, 32), np.uint32)
    for lane in LANES:
        for i in range(elements):
            words[i // per_register, lane] |= bits[table(lane, i)] << 16 * (i % per_register)
    return words


def run_mma(module: Module, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Fragments of many blocks -> D matrices [block, 16, 8]."""
    out = np.zeros((len(a), 4, 32), np.float32)
    module.launch("op", grid=len(a), block=32, args=[Out(out), a, b, c])
    d = np.zeros((len(a), 16, 8), np.float32)
    for lane in LANES:
        for i in range(4):
            d[(slice(None), *c_m16n8(lane, i))] = out[:, i, lane]
    return d


@pytest.mark.parametrize("instruction", SHAPES)
def test_every_element_of_a_and_b(instruction: str, rng: np.random.Generator) -> None:
    depth, per_register, a_table, b_table = SHAPES[instruction]
    module = mma_module(instruction, 16 * depth // 32 // per_register, depth * 8 // 32 // per_register)
    other_b = rng.integers(1, 100, (depth, 8)).astype(np.float32)
    other_a = rng.integers(1, 100, (16, depth)).astype(np.float32)
    zeros = np.zeros((16 * depth, 4, 32), np.float32)

    # One-hot A: row r of D must be row k of B, everything else zero.
    hot = np.eye(16 * depth, dtype=np.float32).reshape(-1, 16, depth)
    a = np.stack([fragment(m, a_table, per_register, instruction) for m in hot])
    b = np.repeat(fragment(other_b, b_table, per_register, instruction)[None], len(a), 0)
    np.testing.assert_array_equal(run_mma(module, a, b, zeros), hot @ other_b)

    # One-hot B: column n of D must be column k of A.
    hot = np.eye(depth * 8, dtype=np.float32).reshape(-1, depth, 8)
    b = np.stack([fragment(m, b_table, per_register, instruction) for m in hot])
    a = np.repeat(fragment(other_a, a_table, per_register, instruction)[None], len(b), 0)
    np.testing.assert_array_equal(run_mma(module, a, b, zeros[: len(b)]), other_a @ hot)


@pytest.mark.parametrize("instruction", SHAPES)
def test_rounding_of_sums(instruction: str) -> None:
    """1 plus or minus 2^-30, rounded in each of the ways."""
    depth, per_register, a_table, b_table = SHAPES[instruction]
    module = mma_module(instruction, 16 * depth // 32 // per_register, depth * 8 // 32 // per_register)
    a, b = np.zeros((16, depth), np.float32), np.zeros((depth, 8), np.float32)
    a[:2, 0], b[0] = [2.0**-15, -(2.0**-15)], 2.0**-15
    fragments = [fragment(a, a_table, per_register, instruction), fragment(b, b_table, per_register, instruction)]
    above, below = 1 + 2.0**-23, 1 - 2.0**-24
    for how, sums in {"up": (above, 1), "toward zero": (1, below), "down": (1, below), "nearest": (1, 1)}.items():
        with mma_rounding(how):
            d = run_mma(module, fragments[0][None], fragments[1][None], np.ones((1, 4, 32), np.float32))
        np.testing.assert_array_equal(d[0, :3, 0], [*sums, 1], err_msg=how)


@pytest.mark.parametrize("instruction", SHAPES)
def test_accumulation(instruction: str, rng: np.random.Generator) -> None:
    depth, per_register, a_table, b_table = SHAPES[instruction]
    module = mma_module(instruction, 16 * depth // 32 // per_register, depth * 8 // 32 // per_register)
    a = rng.integers(-100, 100, (16, depth)).astype(np.float32)
    b = rng.integers(-100, 100, (depth, 8)).astype(np.float32)
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.float32)
    words = np.zeros((1, 4, 32), np.float32)
    for lane in LANES:
        for i in range(4):
            words[0, i, lane] = c[c_m16n8(lane, i)]
    fragments = (fragment(a, a_table, per_register, instruction), fragment(b, b_table, per_register, instruction))
    np.testing.assert_array_equal(run_mma(module, fragments[0][None], fragments[1][None], words)[0], a @ b + c)


def test_tf32_ignores_low_mantissa_bits(rng: np.random.Generator) -> None:
    module = mma_module("m16n8k8.row.col.f32.tf32.tf32.f32", 4, 2)
    a = rng.standard_normal((1, 4, 32)).astype(np.float32).view(np.uint32)
    b = rng.standard_normal((1, 2, 32)).astype(np.float32).view(np.uint32)
    c = np.zeros((1, 4, 32), np.float32)
    full, cut = run_mma(module, a, b, c), run_mma(module, a & 0xFFFFE000, b & 0xFFFFE000, c)
    np.testing.assert_array_equal(full, cut)


def test_half_accumulators(rng: np.random.Generator) -> None:
    module = mma_module("m16n8k16.row.col.f16.f16.f16.f16", 4, 2, 2)
    a, b = rng.integers(-4, 4, (16, 16)).astype(np.float32), rng.integers(-4, 4, (16, 8)).astype(np.float32)
    out = np.zeros((2, 32), np.uint32)
    fa, fb = fragment(a, a_m16n8k16, 2, "f16"), fragment(b, b_m16n8k16, 2, "f16")
    module.launch("op", grid=1, block=32, args=[Out(out), fa, fb, np.zeros_like(out)])
    halves = out.view(np.float16).reshape(2, 32, 2)
    for lane in LANES:
        for i in range(4):
            row, column = c_m16n8(lane, i)
            assert halves[i // 2, lane, i % 2] == (a @ b)[row, column]


# ---- ldmatrix --------------------------------------------------------------------------------------------------------


def ldmatrix_module(count: int, transposed: bool) -> Module:
    """Kernel `op(out, data, addresses)`: copies 1 KiB to shared memory, lane i passes row address addresses[i]."""
    registers = ", ".join(f"%m{i}" for i in range(count))
    stores = "".join(f"st.global.b32 [%d1+{i * 128}], %m{i};\n" for i in range(count))
    copies = "".join(f"ld.global.b32 %r4, [%d1+{i * 128}]; st.shared.b32 [%r5+{i * 128}], %r4;\n" for i in range(8))
    return Module(f"""{HEADER}
.visible .entry op(.param .u64 out, .param .u64 data, .param .u64 addresses)
{{ .reg .b64 %d<2>; .reg .b32 %r<8>; .reg .b32 %m<4>; .shared .align 16 .b8 tile[1024];
mov.u32 %r1, %tid.x; mov.u32 %r2, tile; shl.b32 %r3, %r1, 2; add.s32 %r5, %r2, %r3;
ld.param.u64 %d0, [data]; mad.wide.u32 %d1, %r1, 4, %d0;
{copies} bar.sync 0;
ld.param.u64 %d0, [addresses]; mad.wide.u32 %d1, %r1, 4, %d0; ld.global.b32 %r6, [%d1]; add.s32 %r7, %r2, %r6;
ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{registers}}}, [%r7];
ld.param.u64 %d0, [out]; mad.wide.u32 %d1, %r1, 4, %d0;
{stores} ret; }}
""")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool, rng: np.random.Generator) -> None:
    data = np.arange(512, dtype=np.uint16)  # 64 rows of 8 halves
    rows = rng.permutation(64)[:32].astype(np.uint32)
    out = np.zeros((count, 32), np.uint32)
    ldmatrix_module(count, transposed).launch("op", grid=1, block=32, args=[Out(out), data, rows * 16])
    halves = out.view(np.uint16).reshape(count, 32, 2)
    for m in range(count):
        # Threads 0-7 give the rows of the first matrix, 8-15 of the second, and so on.
        matrix = np.stack([data[8 * r : 8 * r + 8] for r in rows[8 * m : 8 * m + 8]])
        if transposed:
            matrix = matrix.T
        for lane in LANES:
            # Row lane / 4 of the matrix, elements 2 (lane % 4) and the next one.
            assert halves[m, lane, 0] == matrix[lane // 4, 2 * (lane % 4)]
            assert halves[m, lane, 1] == matrix[lane // 4, 2 * (lane % 4) + 1]


def test_ldmatrix_row_must_be_aligned() -> None:
    with pytest.raises(Finding, match="misaligned"):
        ldmatrix_module(1, False).launch(
            "op",
            grid=1,
            block=32,
            args=[Out(np.zeros(32, np.uint32)), np.zeros(512, np.uint16), np.full(32, 8, np.uint32)],
        )


def test_ldmatrix_wavefronts() -> None:
    data, out = np.zeros(512, np.uint16), np.zeros((4, 32), np.uint32)
    spread = np.arange(32, dtype=np.uint32) * 16
    stride = (np.arange(32, dtype=np.uint32) % 8 * 128 + np.arange(32, dtype=np.uint32) // 8 * 16).astype(np.uint32)
    module = ldmatrix_module(4, False)
    stores = 8  # conflict-free stores of the same kernel
    counters = module.launch("op", grid=1, block=32, args=[Out(out), data, spread])
    assert counters.shared_wavefronts == [4 + stores, 4 + stores]
    counters = module.launch("op", grid=1, block=32, args=[Out(out), data, stride])
    assert counters.shared_wavefronts == [32 + stores, 4 + stores]
