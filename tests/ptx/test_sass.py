"""What ptxas made of every kernel of the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ptx import sass

PATHS = sorted(sass.OBJECTS.rglob("*.cu.o"))


@pytest.mark.skipif(not sass.available(), reason=sass.UNAVAILABLE)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(sass.OBJECTS)).removesuffix(".cu.o"))
def test_no_kernel_spills_or_uses_local_memory(path: Path) -> None:
    """Some files hold launchers alone; that none is forgotten is test_every_kernel_is_launched's business."""
    kernels, code = sass.resources(path), sass.functions(path)
    assert kernels.keys() == code.keys()
    for kernel, used in kernels.items():
        assert used.stack == used.local == 0, kernel
        assert not {"LDL", "STL"} & {sass.opcode(text) for _, text in code[kernel]}, kernel
