"""The benchmark of CUDA graphs runs, at a small size; without a GPU it says what it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_graphs
from benchmarks.harness import OURS
from showo.config import official


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_all_ways_are_compared(device: str) -> None:
    config = replace(
        official(num_vq_tokens=16), hidden_size=64, num_heads=2, intermediate_size=64, num_layers=1, text_vocab_size=99
    )
    cases = list(bench_graphs.cases(config, torch.float32, torch.device(device), compiled=False))
    assert [case.name.partition(",")[0] for case in cases] == ["picture of 16 codes", "64 tokens about 16 codes"]
    for case in cases:
        ways = case.candidates
        if device == "cpu":
            assert ways["CUDA graphs"] == bench_graphs.NO_GPU
        results = [way() for way in ways.values() if callable(way)]
        assert len(results) == (1 if device == "cpu" else 2)
        assert callable(ways[OURS])
