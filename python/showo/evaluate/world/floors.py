"""What the tiny model has to hold (`showo evaluate world --check`), and what it should reach."""

from __future__ import annotations

from typing import NamedTuple


class Floor(NamedTuple):
    """Shares of cases that are right, 0 to 1, as `case.overall` takes them."""

    floor: float
    goal: float


# By part and column of the report.
FLOORS = {
    ("text to image", "seen"): Floor(0.85, 0.95),
    ("text to image", "held-out"): Floor(0.60, 0.80),
    ("questions", "seen"): Floor(0.95, 0.99),
    ("questions", "held-out"): Floor(0.80, 0.90),
    ("steps", "seen"): Floor(0.70, 0.85),
}
