"""How strongly each step follows the prompt."""

from __future__ import annotations

import re

from showo.errors import UserError

_OFF = re.compile(r"off(\d+(\.\d+)?)")
GUIDANCE_SCHEDULES = "constant, linear or off<share> (off0.25)"


def guidance_weights(guidance: float, steps: int, schedule: str = "constant") -> list[float]:
    """The guidance of each step.

    "constant": `guidance` in all. "linear": rises in equal parts to `guidance` in the last step, as in Muse
    (arXiv 2301.00704). "off<share>", such as "off0.25": none in that share of the steps at the end, rounded down, where
    it costs variety and adds little (arXiv 2404.07724).

    Raises UserError for another schedule and for a share above 1.
    """
    if schedule == "constant":
        return [guidance] * steps
    if schedule == "linear":
        return [guidance * (step + 1) / steps for step in range(steps)]
    match = _OFF.fullmatch(schedule)
    if match is None or not float(match[1]) <= 1:
        raise UserError(f"guidance schedule must be {GUIDANCE_SCHEDULES}, got {schedule!r}")
    off = int(float(match[1]) * steps + 1e-9)
    return [guidance] * (steps - off) + [0.0] * off
