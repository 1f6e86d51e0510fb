"""The block tables of the CPU and of the CUDA kernels against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask
from showo_ext._native import native
from showo_ext.ops._mask_plan import BLOCK, EMPTY, FULL, PARTIAL
from showo_ext.testing import available_isas, use_isa
from tests.omni_attention.common import ONE_ROW_APART, one_row_apart
from tests.ptx.emulated import emulated_device, module_path

pytestmark = pytest.mark.skipif(
    module_path() is None, reason="the PTX emulator is not built; `make emulator` builds it"
)


def definition(dense: torch.Tensor, block_rows: int, *, incomplete_is_full: bool) -> torch.Tensor:
    """States of the blocks of a dense mask [B, S_q, S_kv]."""
    rows = []
    for tall in dense.split(block_rows, dim=1):
        blocks = [(block.flatten(1), block.size(2) == BLOCK) for block in tall.split(BLOCK, dim=2)]
        full = [block.all(1) & (complete or incomplete_is_full) for block, complete in blocks]
        some = [torch.where(block.any(1), PARTIAL, EMPTY) for block, _ in blocks]
        rows.append(torch.stack([torch.where(f, FULL, s) for f, s in zip(full, some, strict=True)], 1))
    return torch.stack(rows, 1).to(torch.uint8)


def check(intervals: torch.Tensor, columns: int) -> None:
    """Of the CUDA kernel, and of the CPU's for every instruction set."""
    dense = OmniMask(intervals, columns).to_dense()
    expected = torch.nn.functional.pad(dense.any(1), (0, -columns % BLOCK))
    with emulated_device():
        states, seen = torch.ops.showo_ext.omni_block_table(intervals, columns)
    assert torch.equal(states, definition(dense, 64, incomplete_is_full=False))
    assert torch.equal(seen, expected)
    for isa in available_isas():
        with use_isa(isa):
            states, seen = torch.ops.showo_ext.omni_block_table(intervals, columns)
            rows = native().omni_attention_block_rows()
        assert torch.equal(states, definition(dense, rows, incomplete_is_full=True))
        assert torch.equal(seen, expected)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_states_equal_the_definition(data):
    batch, rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 200)), data.draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    ends = torch.randint(0, columns + 1, (batch, rows, data.draw(st.integers(1, 8)), 2), generator=generator)
    intervals = ends.sort(-1).values.int()
    if data.draw(st.booleans()):  # long runs of equal rows give full and empty blocks
        intervals = intervals[:, :1].expand(-1, rows, -1, -1)
    check(intervals, columns)


@pytest.mark.parametrize("case", ONE_ROW_APART)
def test_every_row_of_a_block_counts(case):
    """Blocks have 48, 64 or 96 rows."""
    check(one_row_apart(192, case).intervals, 64)
