"""A picture of one operator's benchmark: a bar for every candidate, and the floor that no implementation can pass."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.harness import OURS, Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Writes a PNG with the medians of `rows`, which are one operator's. Bars reach from the 20th to the 80th
    percentile in their black lines; the dashed line is the roofline's floor where the device's peaks are known.
    """
    cases = list(dict.fromkeys(row.case for row in rows))
    heights = [1 + sum(row.case == case for row in rows) for case in cases]
    size = (9, 0.6 + 0.34 * sum(heights))
    figure, axes = plt.subplots(len(cases), height_ratios=heights, figsize=size, squeeze=False, layout="constrained")
    for axis, case in zip(axes[:, 0], cases, strict=True):
        own = [row for row in rows if row.case == case]
        for i, row in enumerate(own):
            spread = [[row.median_ms - row.p20_ms], [row.p80_ms - row.median_ms]]
            color = "tab:green" if row.candidate == OURS else "tab:gray"
            axis.barh(i, row.median_ms, xerr=spread, color=color, height=0.7, error_kw={"lw": 0.8})
            axis.text(row.p80_ms, i, f"  {row.median_ms:.3g} ms, {row.ratio:.2f}x", va="center", fontsize=8)
        if not math.isnan(own[0].floor_ms):
            axis.axvline(own[0].floor_ms, color="tab:red", ls="--", lw=1)
        axis.set_yticks(range(len(own)), [row.candidate for row in own], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * max(row.p80_ms for row in own))
        axis.set_title(case, fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{rows[0].op}: milliseconds, {rows[0].device}, torch {rows[0].torch}", fontsize=10)
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as a PNG, whole or not at all, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    figure.savefig(draft, format="png", dpi=120)
    plt.close(figure)
    os.replace(draft, path)
    return path
