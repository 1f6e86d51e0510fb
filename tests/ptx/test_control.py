"""Control flow in PTX text: tables of branch targets, loops with several back edges, calls, early exits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx.device import EmulatorError, Finding, Module, Out
from tests.ptx.snippets import HEADER, apply, apply_counted

LANES = np.arange(64, dtype=np.uint32)


def test_branch_table() -> None:
    code = """targets: .branchtargets case0, case1, case2;
    mov.u32 {d}, 99; rem.u32 %r20, {0}, 4; setp.eq.u32 %p1, %r20, 3; @%p1 bra done;
    brx.idx %r20, targets;
    case0: mov.u32 {d}, 10; bra.uni done;
    case1: mov.u32 {d}, 11; bra.uni done;
    case2: mov.u32 {d}, 12;
    done: add.u32 {d}, {d}, 0;"""
    out, counters = apply_counted(code, LANES, out=np.uint32)
    np.testing.assert_array_equal(out, np.array([10, 11, 12, 99], np.uint32)[LANES % 4])
    assert counters.divergent_branches == 2 * 2  # per warp: the guard and the table


def test_branch_table_index_is_checked() -> None:
    code = "targets: .branchtargets here; mov.u32 {d}, 0; brx.idx {0}, targets; here: mov.u32 {d}, 1;"
    np.testing.assert_array_equal(apply(code, LANES * 0, out=np.uint32), LANES * 0 + 1)
    with pytest.raises(Finding, match=r"brx\.idx index 1 is outside its 1 targets"):
        apply(code, LANES, out=np.uint32)


def test_lanes_meet_at_the_head_of_a_loop_with_two_back_edges() -> None:
    """The full-mask vote at the loop head finds an absent lane unless both ways around wait for each other."""
    code = """mov.u32 {d}, 0; mov.u32 %r20, 0;
    head: setp.lt.u32 %p1, %r20, 5; vote.sync.ballot.b32 %r21, %p1, 0xffffffff; @!%p1 bra out;
    add.u32 %r20, %r20, 1; and.b32 %r22, {0}, 1; setp.eq.u32 %p2, %r22, 0; @%p2 bra even;
    add.u32 {d}, {d}, 100; bra.uni head;
    even: add.u32 {d}, {d}, 1; bra.uni head;
    out: add.u32 {d}, {d}, %r21;"""
    np.testing.assert_array_equal(apply(code, LANES, out=np.uint32), np.where(LANES % 2, 500, 5))


def test_nested_loops_with_different_trip_counts() -> None:
    code = """mov.u32 {d}, 0; mov.u32 %r20, {0};
    outer: setp.eq.u32 %p1, %r20, 0; @%p1 bra out; mov.u32 %r21, %r20;
    inner: add.u32 {d}, {d}, 1; sub.u32 %r21, %r21, 1; setp.ne.u32 %p2, %r21, 0; @%p2 bra inner;
    sub.u32 %r20, %r20, 1; bra.uni outer;
    out: vote.sync.ballot.b32 %r22, %p1, 0xffffffff; add.u32 {d}, {d}, %r22; sub.u32 {d}, {d}, 0xffffffff;"""
    np.testing.assert_array_equal(apply(code, LANES, out=np.uint32), LANES * (LANES + 1) // 2)


CALLS = f"""{HEADER}
.func (.param .b32 result) add_one(.param .b32 x)
{{ .reg .b32 %r<3>; ld.param.b32 %r1, [x]; add.s32 %r2, %r1, 1; st.param.b32 [result+0], %r2; ret; }}
.func (.param .b32 result) clamp_add(.param .b32 x)
{{ .reg .b32 %r<4>; .reg .pred %p<2>; ld.param.b32 %r1, [x];
setp.lt.s32 %p1, %r1, 10; @%p1 bra small; mov.u32 %r2, 1000; st.param.b32 [result+0], %r2; ret;
small: {{ .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 r; call.uni (r), add_one, (a); ld.param.b32 %r3, [r+0]; }}
st.param.b32 [result+0], %r3; ret; }}
.visible .entry op(.param .u64 out)
{{ .reg .b64 %d<3>; .reg .b32 %r<6>; .reg .pred %p<2>;
mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra even;
{{ .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 r; call (r), clamp_add, (a); ld.param.b32 %r3, [r+0]; }}
bra.uni store;
even: {{ .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 r; call (r), add_one, (a); ld.param.b32 %r3, [r+0]; }}
store: vote.sync.ballot.b32 %r4, %p1, 0xffffffff;
ld.param.u64 %d1, [out]; mad.wide.u32 %d2, %r1, 4, %d1; st.global.b32 [%d2], %r3; ret; }}
"""


def test_divergent_calls_return_to_their_own_callers() -> None:
    """Odd lanes call a function that calls another or returns early; even lanes call the inner one themselves."""
    out = np.zeros(32, np.uint32)
    Module(CALLS).launch("op", grid=1, block=32, args=[Out(out)])
    lane = np.arange(32)
    np.testing.assert_array_equal(out, np.where((lane % 2 == 1) & (lane >= 10), 1000, lane + 1))


def test_recursion_is_refused() -> None:
    ptx = f"""{HEADER}
.func again() {{ call again, (); ret; }}
.visible .entry op() {{ call again, (); ret; }}"""
    with pytest.raises(EmulatorError, match="recursive device function 'again'"):
        Module(ptx).facts("op")


def test_predicated_exit() -> None:
    code = "mov.u32 {d}, 5; setp.gt.u32 %p1, {0}, 7; @!%p1 bra go; mov.u32 {d}, 6; go: add.u32 {d}, {d}, 0;"
    np.testing.assert_array_equal(apply(code, LANES, out=np.uint32), np.where(LANES > 7, 6, 5))
    partial = np.arange(37, dtype=np.uint32)  # the last warp is short
    np.testing.assert_array_equal(apply("add.u32 {d}, {0}, 1;", partial, out=np.uint32, block=37), partial + 1)
