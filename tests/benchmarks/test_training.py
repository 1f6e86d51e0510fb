"""Benchmarks of whole training steps, at sizes that take seconds."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import bench_packing, bench_step_memory
from benchmarks.harness import OURS
from benchmarks.mixed_rows import padded_rows


@pytest.mark.slow
def test_a_step_needs_at_most_a_third_of_the_eager_formulas_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """At an eighth of the real width; the same losses."""
    bench_step_memory.main(["--hidden", "256", "--layers", "1"])
    printed = capsys.readouterr().out
    (shares,) = re.findall(r"of eager: ([\d.]+), ([\d.]+)", printed)
    assert all(0 < float(share) < 1 / 3 for share in shares), printed
    (losses,) = re.findall(r"loss\s+│ ([\d.]+)\s+│ ([\d.]+)\s+│ ([\d.]+)", printed)
    assert [float(loss) for loss in losses] == pytest.approx([float(losses[0])] * 3, rel=1e-4)


def test_packed_and_padded_rows_are_the_same_work() -> None:
    (case,) = bench_packing.cases(torch.device("cpu"), False, [64])
    packed, padded = (case.candidates[way] for way in (OURS, bench_packing.PADDED))
    assert "% padding" in case.name
    assert float(packed()) == pytest.approx(float(padded()), rel=1e-5)  # type: ignore[operator, arg-type]


def test_rows_are_mixed_as_asked() -> None:
    config = bench_step_memory.sizes(64, 1)
    batch = padded_rows(config, 2, 0, 3, caption=5)
    assert list(batch.parts) == ["t2i", "mmu"]
    assert batch.input_ids.shape == (5, 387)
    assert batch.parts["mmu"].targets == 3 * 7  # sot, five tokens and the end of each answer
