"""What `benchmarks.quantized_answers` says of every kind of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quantized_answers import KINDS, Answers, answers, main
from showo.data.world.world import World
from showo.engine.pipeline import ShowoPipeline
from tests.showo.evaluate.truth import Truth


def test_every_kind(
    small_pipe: ShowoPipeline, world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_pipe.save_pretrained(tmp_path / "small")
    main(["--world", str(world_folder), "--model", str(tmp_path / "small"), "--count", "1", "--captions", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [kind for kind, _, _ in KINDS]
    assert "; 3 of 3 texts as in fp32; " in lines[0]
    sizes = [float(line.split(" MB")[0].rpartition(" ")[2]) for line in lines]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    assert sizes[3] < sizes[2] < sizes[0]


def test_true_answers_are_right(small_pipe: ShowoPipeline, world: World, world_folder: Path) -> None:
    true = answers(Truth(small_pipe, world, world_folder), world, "true", 6, 2)
    assert true.right == {"seen": 6, "held-out": 6}
    other = Answers("other", 0, 0.0, {}, ["", *true.texts[1:]])
    assert other.like(true) == len(true.texts) - 1 == 13
