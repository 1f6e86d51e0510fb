"""What micro-batches say about their rows, which all ranks of a step tell each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from showo.data.faults import Drawn
from showo.data.tally import Tally


class MicroBatch(Protocol):
    """A part of a step's rows, as large as the device takes at once.

    counts: by stream, what the targets of this part weigh in the mean of that stream's loss: their number, as a rule.
    tally: what the rows hold, for the log. drawn: by stream, which samples they have, and which were skipped.
    """

    @property
    def counts(self) -> Mapping[str, float]: ...

    @property
    def tally(self) -> Tally: ...

    @property
    def drawn(self) -> Mapping[str, Sequence[Drawn[None]]]: ...


@dataclass(frozen=True)
class Facts:
    """Those of several micro-batches together, or of several facts: counts and tallies are added up."""

    counts: dict[str, float]
    tally: Tally
    drawn: dict[str, list[Drawn[None]]]

    @classmethod
    def of(cls, parts: Iterable[MicroBatch | Facts]) -> Facts:
        found = cls({}, Tally(), {})
        tally = Tally()
        for part in parts:
            for name, count in part.counts.items():
                found.counts[name] = found.counts.get(name, 0) + count
            for name, drawn in part.drawn.items():
                found.drawn.setdefault(name, []).extend(drawn)
            tally += part.tally
        return cls(found.counts, tally, found.drawn)
