"""Which combinations no training data contain."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from showo.data.world.objects import COLOURS, SHAPES, Object
from showo.data.world.scene import Demand, Scene, Wanted

COUNTS = (2, 3, 4)
_PAIRS = 4  # held-out pairs of shapes, and held-out counts
_RESERVED = 16  # one in so many scenes of seen combinations is kept for validation


@dataclass(frozen=True)
class Holdout:
    """The held-out combinations of a world.

    coloured: eight (shape, colour), each shape and each colour once. pairs: four of two shapes in one picture, each
    shape once. counted: four (count, shape), of four shapes: exactly so many in one picture.
    """

    coloured: frozenset[tuple[str, str]]
    pairs: frozenset[frozenset[str]]
    counted: frozenset[tuple[int, str]]

    @classmethod
    def draw(cls, generator: random.Random) -> Holdout:
        colours, partners, counted = (generator.sample(items, 8) for items in (tuple(COLOURS), SHAPES, SHAPES))
        return cls(
            coloured=frozenset(zip(SHAPES, colours)),
            pairs=frozenset(frozenset(partners[2 * i : 2 * i + 2]) for i in range(_PAIRS)),
            counted=frozenset((generator.choice(COUNTS), shape) for shape in counted[:_PAIRS]),
        )

    def scene_is_seen(self, scene: Scene) -> bool:
        """Whether a picture contains no held-out combination, so that training may show it."""
        return self._all_seen(
            ((thing.shape, thing.colour) for thing in scene.objects),
            scene.counts,
        )

    def demand_is_seen(self, demand: Demand) -> bool:
        """Whether a text names no held-out combination, so that training may contain it."""
        counts: dict[str, int] = {}
        for wanted in demand.wanted:
            counts[wanted.shape] = counts.get(wanted.shape, 0) + wanted.count
        return self._all_seen(((wanted.shape, wanted.colour) for wanted in demand.wanted), counts)

    def text_is_seen(self, mentioned: Sequence[Wanted], scene: Scene) -> bool:
        """Whether a text that goes with a scene mentions no held-out combination, alone or together with the scene."""
        shapes = dict.fromkeys((*scene.counts, *(wanted.shape for wanted in mentioned)), 1)
        return (
            self._all_seen(((wanted.shape, wanted.colour) for wanted in mentioned), shapes)
            and self.counted.isdisjoint((wanted.count, wanted.shape) for wanted in mentioned)
        )  # fmt: skip

    def offenders(self, scene: Scene) -> list[Object]:
        """The objects of a scene that take part in a held-out combination."""
        counts = scene.counts
        return [
            thing
            for thing in scene.objects
            if (thing.shape, thing.colour) in self.coloured
            or (counts[thing.shape], thing.shape) in self.counted
            or any(frozenset({thing.shape, other}) in self.pairs for other in counts)
        ]

    def _all_seen(self, coloured: Iterable[tuple[str, str | None]], counts: Mapping[str, int]) -> bool:
        return (
            self.coloured.isdisjoint(coloured)
            and self.pairs.isdisjoint(map(frozenset, combinations(counts, 2)))
            and self.counted.isdisjoint((count, shape) for shape, count in counts.items())
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "coloured": sorted(map(list, self.coloured)),
            "pairs": sorted(map(sorted, self.pairs)),
            "counted": sorted(map(list, self.counted)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Holdout:
        return cls(
            coloured=frozenset((shape, colour) for shape, colour in data["coloured"]),
            pairs=frozenset(map(frozenset, data["pairs"])),
            counted=frozenset((count, shape) for count, shape in data["counted"]),
        )


def is_reserved(scene: Scene) -> bool:
    """Whether a scene is kept for validation, by a hash of its objects: training never shows that very picture."""
    return zlib.crc32(repr(sorted(scene.objects, key=repr)).encode()) % _RESERVED == 0
