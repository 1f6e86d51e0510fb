"""Samplers: which places of a picture get their token in which step. One file for each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from showo.engine.samplers.confidence import Confidence
from showo.engine.samplers.entropy_bound import EntropyBound
from showo.engine.samplers.filling import Drawn as Drawn
from showo.engine.samplers.filling import Filling as Filling
from showo.engine.samplers.filling import Prediction as Prediction
from showo.engine.samplers.filling import Sampler as Sampler
from showo.engine.samplers.halton import Halton
from showo.engine.samplers.linear_temperature import LinearTemperature
from showo.engine.samplers.remask import Remask
from showo.errors import UserError

# Names, and what each makes of a filling. The last two take a number after a colon.
_PLAIN: dict[str, Callable[[Filling], Sampler]] = {
    "confidence": Confidence,
    "linear-temperature": LinearTemperature,
    "halton": Halton,
}
_WITH_NUMBER: dict[str, tuple[Callable[[Filling, float], Sampler], float, float, str]] = {
    "entropy-bound": (EntropyBound, 1.0, math.inf, "a budget in nats, 0 or more"),
    "remask": (Remask, 0.05, 1.0, "a probability, 0 to 1"),
}
SAMPLER_NAMES = (*_PLAIN, *_WITH_NUMBER)
SAMPLERS = "confidence, linear-temperature, halton, entropy-bound[:NATS] or remask[:PROBABILITY]"


def find_sampler(name: str) -> Callable[[Filling], Sampler]:
    """The sampler of a name, to be made of a filling: see SAMPLERS. UserError for another name or number."""
    if name in _PLAIN:
        return _PLAIN[name]
    kind, colon, number = name.partition(":")
    if kind not in _WITH_NUMBER:
        raise UserError(f"sampler must be {SAMPLERS}, got {name!r}")
    make, value, most, expected = _WITH_NUMBER[kind]
    if colon:
        if not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", number) or not float(number) <= most or float(number) == math.inf:
            raise UserError(f"sampler {kind}: after the colon comes {expected}, got {number!r}")
        value = float(number)
    return lambda filling: make(filling, value)
