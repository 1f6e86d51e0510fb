"""MaskGIT's sampler (arXiv 2202.04200): as the official one, but the noise on the confidences falls linearly.

The temperature is start * (1 - progress). The released code of Show-o means the same and multiplies cumulatively, so
that its noise is gone after a third of the steps; with this rule the order of the places stays bold for longer.
"""

from __future__ import annotations

from showo.engine.samplers.confidence import Confidence
from showo.engine.samplers.filling import Filling


def linear_temperatures(start: float, steps: int) -> list[float]:
    """Temperature of each step; 0 in the last."""
    return [start * (1.0 - (step + 1) / steps) for step in range(steps)]


class LinearTemperature(Confidence):
    def __init__(self, filling: Filling) -> None:
        super().__init__(filling, linear_temperatures(filling.temperature, filling.steps))
