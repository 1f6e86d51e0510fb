"""The times of pictures by codes and batch: which points are measured, what follows, and that it can be drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.picture_times import Point, main, medians


def test_the_command_line(tmp_path: Path) -> None:
    sizes = ["--codes", "64", "4", "--batches", "2", "1", "--most", "8", "--hidden", "64", "--layers", "1"]
    threads = torch.get_num_threads()
    main([*sizes, "--threads", str(threads), "--out", str(tmp_path / "times.png")])
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    # One picture is always measured, several where their codes are few enough.
    assert [(row["codes"], row["batch"]) for row in rows] == [("4", "1"), ("4", "2"), ("64", "1")]
    for row in rows:
        whole = float(row["first"]) + 17 * float(row["step"]) + float(row["decode"])
        assert float(row["picture"]) == pytest.approx(whole / int(row["batch"]))
    with Image.open(tmp_path / "times.png") as image:
        assert image.width > 500


def test_medians_of_rounds() -> None:
    rounds = [[Point(4, 1, first, 10 * first, 3.0), Point(8, 1, 7.0, first, 3.0)] for first in (5.0, 1.0, 2.0)]
    assert medians(rounds) == [Point(4, 1, 2.0, 20.0, 3.0), Point(8, 1, 7.0, 2.0, 3.0)]
