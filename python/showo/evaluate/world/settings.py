"""How a model is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """steps, guidance, seed: of the pictures; picture i of a part is drawn with seed + i.

    step_guidance: in place of guidance where a picture continues a sequence; such rows are trained with all texts.
    count: most cases of every part and column. batch: how many are computed at a time; it changes nothing but rounding.
    """

    steps: int = 18
    guidance: float = 1.75
    step_guidance: float = 0.0
    seed: int = 0
    count: int = 800
    batch: int = 32
