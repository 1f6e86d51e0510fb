"""What torchrun tells the processes that it starts, in their environment: nothing else here reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """rank: number of this process among `count`. local: its number among those of its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_this_process(cls) -> Launch:
        """A process that torchrun has not started is alone."""
        values = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        found = [None if value is None else int(value) for value in values]
        return cls() if None in found else cls(*found)  # type: ignore[arg-type]
