"""The benchmark of the engine runs, at a small size, and what it compares is the same."""

from pathlib import Path

import pytest
import torch

from benchmarks import bench_serving


def test_together_and_one_at_a_time(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    bench_serving.main(["--checkpoint", str(checkpoint), "--requests", "4", "--rounds", "1", "--steps", "3"])
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if "times as fast" in line]
    assert [head.split(":")[0] for head in heads] == ["pictures", "answers", "both"]
    assert all("4 of 4 the same" in head for head in heads)
    assert len(lines) == 9
    assert torch.get_num_threads() == before
