"""Which numbers a value of a configuration may be: written beside the value, checked when it is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from showo.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """The finite numbers that `low` and `high` enclose, which themselves belong to it unless they are left out."""

    low: float
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.without_low else number >= self.low
        below = number < self.high if self.without_high else number <= self.high
        return above and below and math.isfinite(number)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.without_low else f"at least {self.low}"
        if self.high == math.inf:
            return f"{low} and finite"
        return f"{low} and " + (f"below {self.high}" if self.without_high else f"at most {self.high}")


COUNT = Interval(1)
NOT_NEGATIVE = Interval(0)
POSITIVE = Interval(0, without_low=True)
SHARE = Interval(0, 1)
SHARE_BELOW_ONE = Interval(0, 1, without_high=True)


def within(interval: Interval, default: Any) -> Any:
    """A dataclass field whose number, or each of whose numbers, must lie in `interval`."""
    return field(default=default, metadata={"interval": interval})


def check_intervals(config: Any, prefix: str = "") -> None:
    """Raises ConfigError, which names the key, for a value out of its interval.

    Also in dataclasses within `config` and within its lists, and for a list within a list of texts, which OmegaConf
    does not notice.
    """
    for each in fields(config):
        key, value = prefix + each.name, getattr(config, each.name)
        if is_dataclass(value):
            check_intervals(value, key + ".")
        elif interval := each.metadata.get("interval"):
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if number not in interval:
                    raise ConfigError(f"{key} must be {interval}, got {value}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if is_dataclass(item):
                    check_intervals(item, f"{key}[{index}].")
                elif not isinstance(item, str):
                    raise ConfigError(f"{key} must be a list of texts, got {value}")
