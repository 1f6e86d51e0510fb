"""The model of an A100 on numbers whose answer is known, and that the page can be written."""

from __future__ import annotations

import types

import pytest
import torch

from benchmarks import a100
from benchmarks.roofline import A100_80GB, Work
from showo.train.plan.kernels import LAUNCH


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks", "limit"),
    [  # NVIDIA's occupancy calculator, compute capability 8.0
        (128, 255, 0, 2, "registers"),
        (128, 128, 0, 4, "registers"),
        (256, 32, 0, 8, "threads"),
        (1024, 64, 0, 1, "registers"),
        (128, 168, 48 * 1024, 3, "registers"),
        (128, 64, 80 * 1024, 2, "shared memory"),
        (128, 32, 163 * 1024, 1, "shared memory"),
        (32, 16, 0, 32, "blocks"),
    ],
)
def test_occupancy(threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    held = a100.occupancy(threads, registers, shared)
    assert (held.blocks, held.limit) == (blocks, limit)
    assert held.warps == blocks * threads // 32


def record(**counts):
    """Counters of a launch that fills the device evenly and does nothing else."""
    facts = {"grid": (108, 1, 1), "classes": {}, "tensors": [], "shared_wavefronts": (0, 0), "global_sectors": (0, 0)}
    return types.SimpleNamespace(**{**facts, "mma_flops": 0, "warp_instructions": 0, **counts})


def test_each_resource_at_its_peak() -> None:
    cycles = int(108 * A100_80GB.clock)
    for binds, counts in {
        "tensor": {"mma_flops": 312e12},
        "issue": {"warp_instructions": 4 * cycles},
        "shared": {"shared_wavefronts": (cycles, 0)},
        "special": {"classes": {"special": (cycles / 2, 0)}},
        "fp32": {"classes": {"fp32": (cycles * 2, 0)}},
        "memory": {"tensors": [{"read": 1.5e12, "written": 0.5e12}]},
        "L2": {"global_sectors": (5120 * A100_80GB.clock / 32, 0)},
    }.items():
        prediction = a100.predict(record(**counts))
        assert prediction.binds == binds
        assert prediction.best == pytest.approx(1.0, rel=1e-6)
        assert prediction.seconds >= 1.0


def test_a_wave_that_is_hardly_filled_counts_whole() -> None:
    one, many = (a100.predict(record(grid=(n, 1, 1), mma_flops=1e12)) for n in (109, 216))
    assert one.best == pytest.approx(many.best * 216 / 109)


def test_flash_attention_2_calibrates_the_model() -> None:
    """A head forward and backward at length 1,024: 14 D S^2 FLOPs at the published 153 TFLOP/s."""
    counted = record(warp_instructions=108 * 1_015_776, mma_flops=108 * 229_376 * 4096)
    seconds = a100.predict(counted).seconds - LAUNCH
    assert 108 * 14 * 64 * 1024**2 / seconds == pytest.approx(153e12, rel=0.01)


def test_page_is_written_between_its_marks() -> None:
    model = pytest.importorskip("benchmarks.model")
    for operator in model.FAMILIES:
        page = model.replace(model.PAGE.read_text(), operator, "| a table |")
        assert f"<!-- model: {operator} -->\n| a table |\n<!-- end: {operator} -->" in page
    with pytest.raises(ValueError, match="has no '<!-- model: codebook -->'"):
        model.replace("nothing", "codebook", "")


def test_a_row_of_the_table(emulated) -> None:
    model = pytest.importorskip("benchmarks.model")
    from benchmarks.harness import OURS, Case
    from showo_ext import lfq_encode

    work = Work(0.0, 3840.0, torch.float32)
    case = Case("codebook", "small", {OURS: lfq_encode}, lambda i: (torch.ones(1, 13, 8, 8),), work)
    cells = [cell.strip() for cell in model.row(case, model.launches(case)).strip("|").split("|")]
    assert cells[0] == "small"
    assert len(cells) == model.TITLES.count("|") - 1
    assert cells[-1] == "1"
