"""Samples that cannot be used: skipped, counted, logged, and replaced by others, until they are too many.

Which sample takes the place of a broken one depends on the seed and the position alone. So all other positions have the
samples that they would have without the fault, and every process finds the same replacement.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from showo.data.order import Mixture, Shuffled
from showo.data.sample import Sample, Source
from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.errors import DataError, SampleError
from showo.seeds import hashed_words
from showo.tables import aligned

MAX_ATTEMPTS = 100  # broken samples in a row, after which a source is given up

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A sample that was skipped. source: number of the source in its pool; index: number of the sample in it."""

    source: int
    index: int
    reason: str
    message: str


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """What was made of the sample at a position, and the faults that were met on the way to it."""

    value: T
    source: int
    index: int
    faults: tuple[Fault, ...]

    def facts(self) -> Drawn[None]:
        """The same without the value: what a log needs."""
        return Drawn(None, self.source, self.index, self.faults)


class Pool:
    """Sources mixed by weight, in an endless shuffled order without broken samples.

    Can be copied to another process; all copies give the same.
    """

    def __init__(self, sources: Sequence[Source], configs: Sequence[SourceConfig], seed: int) -> None:
        self.sources, self.configs, self.seed = list(sources), list(configs), seed
        orders = [
            Shuffled(len(source), int(hashed_words(seed, number)[0]), block=config.block, window=config.window)
            for number, (source, config) in enumerate(zip(sources, configs))
        ]
        self.mixture = Mixture(orders, [config.weight for config in configs], seed)

    def __len__(self) -> int:
        """Samples of all sources together."""
        return sum(map(len, self.sources))

    @property
    def shares(self) -> list[float]:
        """Of all positions, the share that each source has."""
        total = sum(config.weight for config in self.configs)
        return [config.weight / total for config in self.configs]

    def draw(self, positions: Sequence[int], make: Callable[[int, Sample], T]) -> list[Drawn[T]]:
        """What `make` makes of each position from 0 on and its sample, or the sample that replaces that one.

        make: raises SampleError where it cannot use a sample, such as for a picture that it cannot decode.

        Raises DataError where a source cannot be used any more, or MAX_ATTEMPTS samples in a row are broken.
        """
        sources, indices = self.mixture.at(np.asarray(positions, np.int64))
        return [self._draw(*each, make) for each in zip(positions, sources.tolist(), indices.tolist())]

    def _draw(self, position: int, source: int, index: int, make: Callable[[int, Sample], T]) -> Drawn[T]:
        faults: list[Fault] = []
        while len(faults) < MAX_ATTEMPTS:
            try:
                return Drawn(make(position, self.sources[source][index]), source, index, tuple(faults))
            except SampleError as error:
                faults.append(Fault(source, index, error.reason, str(error)))
                other = hashed_words(self.seed, source, position, len(faults))
                index = int(other[0]) % len(self.sources[source])
        name = self.sources[source].name
        raise DataError(f"{name}: {MAX_ATTEMPTS} samples in a row cannot be used; the last: {faults[-1].message}")


def open_pool(configs: Sequence[SourceConfig], seed: int, cache: Path | None = None) -> Pool:
    """The pool of the sources that configurations describe. Raises as `open_source`."""
    return Pool([open_source(config, cache) for config in configs], configs, seed)


class FaultLog:
    """Counts faults by source and reason, logs each, and stops a run in which they are too many.

    names: of the sources of the pool.
    share: of the samples of a source that may be broken.
    tolerated: so many may be broken whatever their share; few samples say little about a share.
    """

    def __init__(self, names: Sequence[str], share: float = 0.01, tolerated: int = 100) -> None:
        self.names, self.share, self.tolerated = list(names), share, tolerated
        self.tried: Counter[int] = Counter()
        self.counts: Counter[tuple[int, str]] = Counter()

    def add(self, drawn: Iterable[Drawn[Any]]) -> None:
        """Count what was drawn. Raises DataError, with a table, where the share of a source is passed."""
        for each in drawn:
            self.count(each.source, 1 + len(each.faults), each.faults)

    def count(self, source: int, tried: int, faults: Sequence[Fault]) -> None:
        """So many samples of a source were tried, and these of them cannot be used. Raises as `add`."""
        self.tried[source] += tried
        name = self.names[source]
        for fault in faults:
            self.counts[source, fault.reason] += 1
            _log.warning("%s: skipped a sample (%s): %s", name, fault.reason, fault.message)
        broken = sum(count for (number, _), count in self.counts.items() if number == source)
        if broken > max(self.tolerated, self.share * self.tried[source]):
            raise DataError(
                f"{name}: {broken} of {self.tried[source]} samples cannot be used, more than {self.share:.1%}\n"
                + self.table()
            )

    def table(self) -> str:
        """Lines of source, reason and count, the most frequent first; "" where there was no fault."""
        rows = [(self.names[source], reason, str(count)) for (source, reason), count in self.counts.most_common()]
        return "\n".join(aligned(rows, right={2}))
