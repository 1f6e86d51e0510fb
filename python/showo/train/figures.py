"""The figures of the steps that were done since somebody looked: on the device until then, and fetched all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from showo.errors import NotFiniteError

Figures = dict[str, float]


class StepFigures:
    """Takes the figures of steps as tensors without dimensions, and gives them as numbers.

    limit: so many steps in a row may be skipped because loss or gradient was not finite.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0  # steps in all
        self._in_a_row = 0
        self._waiting: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, figures: Mapping[str, Tensor]) -> None:
        """step: its number, counted from 1. Does not wait for the device."""
        self._waiting.append((step, list(figures), torch.stack([figure.float() for figure in figures.values()])))

    def take(self) -> list[Figures]:
        """The figures of every step since the last call, in order. Waits for the device.

        Raises NotFiniteError where more steps in a row than the limit were skipped.
        """
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        numbers = iter(torch.cat([tensor for *_, tensor in waiting]).tolist())
        taken: list[Figures] = []
        for step, names, _ in waiting:
            figures = {name: next(numbers) for name in names}
            self._check(step, figures)
            taken.append(figures)
        return taken

    def _check(self, step: int, figures: Figures) -> None:
        if figures["finite"]:
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.limit:
            raise NotFiniteError(
                f"step {step}: loss {figures['loss']}, gradient norm {figures['grad_norm']}; "
                f"{self._in_a_row} steps in a row were skipped, at most {self.limit} may be (max_skipped_steps)"
            )


def mean_figures(steps: Sequence[Figures]) -> Figures:
    """Means over the steps that were not skipped; NaN where all were."""
    done = [figures for figures in steps if figures["finite"]]
    names = {name: None for figures in done or steps for name in figures if name != "finite"}
    return {name: _mean([figures[name] for figures in done if name in figures]) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
