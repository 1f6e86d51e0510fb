"""The ground truth: what a picture holds, and what a text demands of a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from showo.data.world.objects import Object

RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
MIN_OFFSET = 8  # pixels by which one object has to be above another, say, to be called so


@dataclass(frozen=True)
class Scene:
    """The objects of a picture, in an order that says nothing."""

    objects: tuple[Object, ...]

    @property
    def counts(self) -> Counter[str]:
        """How many objects there are of each shape."""
        return Counter(thing.shape for thing in self.objects)

    def to_json(self) -> dict[str, Any]:
        return {"objects": [asdict(thing) for thing in self.objects]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        return cls(tuple(Object(**thing) for thing in data["objects"]))


def holds(first: Object, relation: str, second: Object) -> bool:
    """Whether `first` is above (below, left of, right of) `second`: by MIN_OFFSET, and mostly in that direction."""
    right, down = first.x - second.x, first.y - second.y
    along, across = (down, right) if relation in ("above", "below") else (right, down)
    along = -along if relation in ("above", "left of") else along
    return along >= MIN_OFFSET and along > abs(across)


@dataclass(frozen=True)
class Wanted:
    """`count` objects of a shape; colour and place (one of PLACES) may be anything where they are None."""

    shape: str
    colour: str | None = None
    count: int = 1
    place: str | None = None

    def fits(self, thing: Object) -> bool:
        return (
            thing.shape == self.shape
            and self.colour in (None, thing.colour)
            and self.place in (None, thing.place)
        )  # fmt: skip


@dataclass(frozen=True)
class Demand:
    """What a caption says: these objects and no others, and how the first two lie to each other.

    category: which of GenEval's skills it takes, or "place" or "full".
    relation: one of RELATIONS, between the first and the second wanted object, or None.
    """

    category: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None

    def is_met_by(self, scene: Scene) -> bool:
        """Whether the objects of the scene can be taken for the wanted ones, one for one."""
        single = [wanted for wanted in self.wanted for _ in range(wanted.count)]
        if len(single) != len(scene.objects):
            return False
        return any(
            all(wanted.fits(thing) for wanted, thing in zip(single, things))
            and (self.relation is None or holds(things[0], self.relation, things[1]))
            for things in permutations(scene.objects)
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Demand:
        return cls(data["category"], tuple(Wanted(**wanted) for wanted in data["wanted"]), data["relation"])
