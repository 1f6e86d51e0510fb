"""Tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """A line for every row, its cells in columns. right: numbers of the columns that end, not begin, at one place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [cell.rjust(width) if number in right else cell.ljust(width) for number, (cell, width) in enumerate(line)]
        for line in (zip(row, widths, strict=True) for row in rows)
    )
    return ["  ".join(line).rstrip() for line in cells]
