"""The benchmark of the engine runs, at a small size, and what it compares is the same."""

from pathlib import Path

import pytest
import torch

from benchmarks import bench_serving


def test_together_and_one_at_a_time(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    options = ["--requests", "4", "--rounds", "1", "--steps", "3", "--rows", "2", "8"]
    bench_serving.main(["--checkpoint", str(checkpoint), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["pictures:", "answers:", "both:"]
    ways = [line.split("  ")[1].strip() for line in lines if line.startswith(" ")]
    compared = ["one at a time", "2 rows", "8 rows"]
    assert ways == [*compared, "one at a time", "8 rows", *compared]
    assert all("4 of 4 the same" in line for line in lines if line.startswith(" "))
    assert "a picture takes" in lines[-1]
    assert "an answer takes" in lines[-1]
    assert torch.get_num_threads() == before
