"""The block table of the CUDA kernels against its definition, on a GPU or the emulator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showo_ext import OmniMask
from tests.ptx.emulated import emulated_device, module_path


@pytest.mark.skipif(module_path() is None, reason="the PTX emulator is not built; `make emulator` builds it")
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_states_equal_the_definition(data):
    batch, rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 200)), data.draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    ends = torch.randint(0, columns + 1, (batch, rows, data.draw(st.integers(1, 8)), 2), generator=generator)
    intervals = ends.sort(-1).values.int()
    if data.draw(st.booleans()):  # long runs of equal rows give full and empty blocks
        intervals = intervals[:, :1].expand(-1, rows, -1, -1)
    want = OmniMask(intervals, columns).block_states()
    with emulated_device():
        mask = OmniMask(intervals, columns)
        assert torch.equal(mask.block_states(), want)
        assert mask.block_states() is mask.block_states()
