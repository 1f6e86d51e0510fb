"""Long sequences a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

S = TypeVar("S", bound=Sequence[Any])


def pieces(items: S, size: int) -> Iterator[S]:
    """The items in order, `size` at a time and at last what is left: ranges of a range, lists of a list."""
    for start in range(0, len(items), size):
        yield items[start : start + size]  # type: ignore[misc]
