"""How a model draws where nobody says otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from showo.config import check_types, reject_unknown
from showo.errors import ConfigError

MAX_STEPS = 1000  # far more than any picture has use for: whoever asks for more has made a mistake


@dataclass(frozen=True)
class Sampling:
    """The settings of generation that are best for a model; the defaults are those of the released ones.

    steps: over which masks resolve. guidance: w of (1 + w) * conditional - w * unconditional logits.
    top_k: each place is drawn from its most probable codes, so many of them; 0 is all codes.

    Raises ConfigError for less than one step or more than MAX_STEPS, for a guidance that is negative or not finite, and
    for a negative top_k.
    """

    steps: int = 18
    guidance: float = 1.75
    top_k: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"sampling: steps must be at least 1 and at most {MAX_STEPS}, got {self.steps}")
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"sampling: guidance must be 0 or more and finite, got {self.guidance}")
        if self.top_k < 0:
            raise ConfigError(f"sampling: top_k must be 0 or more, got {self.top_k}")

    def filled(self, **asked: Any) -> Sampling:
        """What a caller has asked for by field; in place of None what is best for the model. Raises ConfigError."""
        return dataclasses.replace(self, **{name: value for name, value in asked.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sampling:
        """The inverse of to_dict. Raises ConfigError, for unknown keys too."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"sampling must hold steps and guidance, got {data!r}")
        reject_unknown(data, [field.name for field in dataclasses.fields(cls)], cls)
        return cls(**data)


# Settings of the published models. Show-o: its demos. Show-o Turbo (arXiv 2502.05415): distilled to need no guidance,
# and to draw from the top k in four steps; with 8 steps or more its authors draw from all codes (top_k 0).
PRESETS: Mapping[str, Sampling] = {
    "show-o": Sampling(),
    "show-o-512": Sampling(steps=50, guidance=5.0),
    "show-o-turbo": Sampling(steps=4, guidance=0.0, top_k=200),
    "show-o-turbo-512": Sampling(steps=4, guidance=0.0, top_k=500),
}
