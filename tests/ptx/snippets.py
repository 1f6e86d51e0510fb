"""Runs single PTX instructions on arrays: each thread loads its inputs, executes the snippet, stores its result."""

from __future__ import annotations

import numpy as np

from tests.ptx.device import Counters, Module, Out

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
_LOADS = {1: "u8", 2: "b16", 4: "b32", 8: "b64"}
_REGISTERS = {1: "h", 2: "h", 4: "r", 8: "d"}


def snippet_ptx(code: str, inputs: list[int], output: int) -> str:
    """A module whose kernel `op` applies `code`; {0}, {1}, ... and {d} stand for registers of the given sizes."""
    names = [f"%{_REGISTERS[size]}{i + 10}" for i, size in enumerate(inputs)]
    result = f"%{_REGISTERS[output]}9"
    loads = "".join(
        f"\tld.param.u64 %d0, [in{i}];\n\tmad.wide.s32 %d1, %r0, {size}, %d0;\n"
        f"\tld.global.{_LOADS[size]} {names[i]}, [%d1];\n"
        for i, size in enumerate(inputs)
    )
    params = "".join(f", .param .u64 in{i}" for i in range(len(inputs)))
    return f"""{HEADER}
.visible .entry op(.param .u32 n, .param .u64 out{params})
{{
\t.reg .pred %p<9>;
\t.reg .b16 %h<40>;
\t.reg .b32 %r<40>;
\t.reg .b64 %d<40>;
\tmov.u32 %r0, %ctaid.x;
\tmov.u32 %r1, %ntid.x;
\tmov.u32 %r2, %tid.x;
\tmad.lo.s32 %r0, %r0, %r1, %r2;
\tld.param.u32 %r1, [n];
\tsetp.ge.s32 %p0, %r0, %r1;
\t@%p0 ret;
{loads}
\t{code.format(*names, d=result)}
\tld.param.u64 %d0, [out];
\tmad.wide.s32 %d1, %r0, {output}, %d0;
\tst.global.{_LOADS[output]} [%d1], {result};
\tret;
}}
"""


def apply(code: str, *inputs: np.ndarray, out: np.typing.DTypeLike, block: int = 64) -> np.ndarray:
    """The result of `code` for every element."""
    return apply_counted(code, *inputs, out=out, block=block)[0]


def apply_counted(
    code: str, *inputs: np.ndarray, out: np.typing.DTypeLike, block: int = 64
) -> tuple[np.ndarray, Counters]:
    n = inputs[0].size
    result = np.zeros(n, out)
    module = Module(snippet_ptx(code, [x.itemsize for x in inputs], result.itemsize))
    counters = module.launch("op", grid=(n + block - 1) // block, block=block, args=[n, Out(result), *inputs])
    return result, counters
