"""What rows hold, for the log."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Tally:
    """Numbers that add up over rows.

    images: pictures. tokens: places that are computed. padding: places that the padded rows would have besides.
    codes, masked: image codes that are to be predicted or could be, and how many of these are masked.
    """

    images: int = 0
    tokens: int = 0
    padding: int = 0
    codes: int = 0
    masked: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Tally)))
