"""How a model draws where nobody says otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from showo.config import check_types, reject_unknown
from showo.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """The settings of generation that are best for a model; the defaults are those of the released ones.

    steps: over which masks resolve. guidance: w of (1 + w) * conditional - w * unconditional logits.

    Raises ConfigError for other than at least one step, and for a guidance that is negative or not finite.
    """

    steps: int = 18
    guidance: float = 1.75

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 1:
            raise ConfigError(f"sampling: steps must be at least 1, got {self.steps}")
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"sampling: guidance must be 0 or more and finite, got {self.guidance}")

    def filled(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        """What a caller has asked for, unchecked; in place of None what is best for the model."""
        return self.steps if steps is None else steps, self.guidance if guidance is None else guidance

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sampling:
        """The inverse of to_dict. Raises ConfigError, for unknown keys too."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"sampling must hold steps and guidance, got {data!r}")
        reject_unknown(data, [field.name for field in dataclasses.fields(cls)], cls)
        return cls(**data)
