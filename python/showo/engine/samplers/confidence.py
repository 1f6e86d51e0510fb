"""The official sampler: tokens everywhere, and the least sure of them are masked again (arXiv 2408.12528, 2202.04200).

In every step a token is drawn for each masked place. Of these, as many as the schedule leaves are masked again: those
of least confidence log p + temperature * Gumbel. The temperature falls from step to step as in the released code of
Show-o, where it is multiplied by 1 - progress every time, cumulatively: of 18 steps, half of it is left after four.
"""

from __future__ import annotations

import torch
from torch import Tensor

from showo.engine.samplers.filling import Drawn, Filling, Prediction, Sampler


def official_temperatures(start: float, steps: int) -> list[float]:
    """Temperature of each step; 0 in the last."""
    values = []
    current = start
    for step in range(steps):
        current *= 1.0 - (step + 1) / steps
        values.append(current)
    return values


class Confidence(Sampler):
    """temperatures: of each step, for the noise on the confidences; None is the official rule."""

    def __init__(self, filling: Filling, temperatures: list[float] | None = None) -> None:
        if temperatures is None:
            temperatures = official_temperatures(filling.temperature, filling.steps)
        self.filling = filling
        self.mask_len = filling.on_device(filling.mask_lengths(), torch.int64)  # [steps, B]
        self.temperatures = filling.on_device(temperatures, torch.float64)
        self.numbers = torch.arange(filling.steps, device=filling.canvas.device)

    def step(self, step: int, prediction: Prediction, canvas: Tensor) -> Drawn:
        number, temperature = self.numbers[step], self.temperatures[step]
        return self.filling.draw(step, number, prediction, canvas, self.mask_len[step], temperature)
