"""Scenes and what to say about them, by category, from a seeded generator."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from showo.data.world.holdout import COUNTS, Holdout, is_reserved
from showo.data.world.objects import APART, CLEAR, COLOURS, EMOJI, LATTICE, SHAPES, Object
from showo.data.world.scene import RELATIONS, Demand, Scene, Wanted, holds

Point = tuple[int, int]
SPLITS = ("train", "val", "held-out")
# The share of each category, in percent. What takes two objects together is the hardest to learn.
CATEGORIES = {
    "single": 5,
    "colours": 10,
    "place": 15,
    "two": 10,
    "binding": 15,
    "position": 25,
    "counting": 10,
    "full": 10,
}


@dataclass(frozen=True)
class Example:
    """A scene, and one thing to say about it that is true."""

    scene: Scene
    demand: Demand


def split_categories(split: str) -> list[str]:
    """The categories of a split. Held out there is no "single": a shape alone is no combination."""
    return [category for category in CATEGORIES if split != "held-out" or category != "single"]


def draw_category(generator: random.Random, split: str) -> str:
    """A category by its share."""
    categories = split_categories(split)
    return generator.choices(categories, [CATEGORIES[category] for category in categories])[0]


def draw_example(
    generator: random.Random, holdout: Holdout, split: str, category: str | None = None, emoji: float = 0.0
) -> Example:
    """An example of a category, or of any, that has its place in a split.

    split: "train" and "val" contain no held-out combination, and no scene is in both; in "held-out" the demand names a
    held-out combination.
    emoji: the share of objects that are emoji.
    """
    category = category or draw_category(generator, split)
    while True:
        try:
            example = _MAKERS[category](Draw(generator, emoji))
            require(split != "held-out" or not holdout.demand_is_seen(example.demand))
            require_split(example.scene, holdout, split)
        except Impossible:
            continue
        return example


class Impossible(Exception):
    """What was drawn does not go together: everything is to be drawn again."""


def require(possible: bool) -> None:
    """Raises Impossible where something is not so."""
    if not possible:
        raise Impossible


def require_split(scene: Scene, holdout: Holdout, split: str) -> None:
    """Raises Impossible where a scene has no place in a split."""
    seen = holdout.scene_is_seen(scene)
    require(not seen if split == "held-out" else seen and is_reserved(scene) == (split == "val"))


class Draw:
    """Random things and places. What does not go together raises Impossible."""

    def __init__(self, generator: random.Random, emoji: float) -> None:
        self.random, self.emoji = generator, emoji

    def colour(self) -> str:
        return self.random.choice(tuple(COLOURS))

    def coin(self) -> bool:
        return self.random.random() < 0.5

    def thing(self) -> Object:
        """An object that has no place yet."""
        if self.emoji and self.random.random() < self.emoji:
            return Object(self.random.choice(EMOJI), None, 0, 0)
        return Object(self.random.choice(SHAPES), self.colour(), 0, 0)

    def things(self, count: int) -> list[Object]:
        """Objects without places, no two of the same name."""
        things = [self.thing() for _ in range(count)]
        require(len({thing.name for thing in things}) == count)
        return things

    def repeated(self, thing: Object, count: int) -> list[Object]:
        """Objects without places, `count` of the shape of `thing`, each of any colour."""
        return [replace(thing, colour=thing.colour and self.colour()) for _ in range(count)]

    def placed(self, things: list[Object], lattice: tuple[int, ...] = LATTICE) -> tuple[Object, ...]:
        """The objects at random places where no two touch."""
        taken: list[Point] = []
        for _ in things:
            free = free_points(lattice, taken)
            require(len(free) > 0)
            taken.append(self.random.choice(free))
        return tuple(Object(thing.shape, thing.colour, x, y) for thing, (x, y) in zip(things, taken))


def free_points(lattice: tuple[int, ...], taken: Sequence[Point]) -> list[Point]:
    """The points with both coordinates in `lattice` where an object may be beside others, whose centres are `taken`."""
    points = _points(lattice)
    if not taken:
        return points
    free = frozenset.intersection(*(_apart()[point] for point in taken))
    return [point for point in points if point in free]


@functools.cache
def _points(lattice: tuple[int, ...]) -> list[Point]:
    return [(x, y) for x in lattice for y in lattice]


@functools.cache
def _apart() -> dict[Point, frozenset[Point]]:
    """For every point where an object may be, those where another then may be."""
    points = _points(LATTICE)
    return {(x, y): frozenset(p for p in points if max(abs(p[0] - x), abs(p[1] - y)) >= APART) for x, y in points}


def _example(
    category: str, objects: tuple[Object, ...], *, coloured: bool = True, placed: bool = False, relation: str = ""
) -> Example:
    """All objects of a scene are wanted, by shape, and if so asked by colour and by place."""
    wanted = (Wanted(o.shape, o.colour if coloured else None, place=o.place if placed else None) for o in objects)
    return Example(Scene(objects), Demand(category, tuple(wanted), relation or None))


def _single(draw: Draw) -> Example:
    return _example("single", draw.placed([draw.thing()]), coloured=False)


def _colours(draw: Draw) -> Example:
    return _example("colours", draw.placed([draw.thing()]))


def _place(draw: Draw) -> Example:
    return _example("place", draw.placed([draw.thing()], CLEAR), placed=True)


def _two(draw: Draw) -> Example:
    first, second = draw.placed(draw.things(2))
    require(first.shape != second.shape)
    return _example("two", (first, second), coloured=False)


def _binding(draw: Draw) -> Example:
    return _example("binding", draw.placed(draw.things(2)))


def _position(draw: Draw) -> Example:
    first, second = draw.placed(draw.things(2))
    relation = next((relation for relation in RELATIONS if holds(first, relation, second)), "")
    coloured = draw.coin()
    require(relation != "" and (coloured or first.shape != second.shape))
    return _example("position", (first, second), coloured=coloured, relation=relation)


def _counting(draw: Draw) -> Example:
    """Several of a shape: all of one colour, which is named, or each of any, which is not."""
    count, thing, coloured = draw.random.choice(COUNTS), draw.thing(), draw.coin()
    things = [thing] * count if coloured else draw.repeated(thing, count)
    wanted = Wanted(thing.shape, thing.colour if coloured else None, count)
    return Example(Scene(draw.placed(things)), Demand("counting", (wanted,)))


def _full(draw: Draw) -> Example:
    """Three or four objects, all named, in half of the cases with their places."""
    things, placed = draw.things(draw.random.choice((3, 4))), draw.coin()
    return _example("full", draw.placed(things, CLEAR if placed else LATTICE), placed=placed)


_MAKERS: dict[str, Callable[[Draw], Example]] = {
    "single": _single,
    "colours": _colours,
    "place": _place,
    "two": _two,
    "binding": _binding,
    "position": _position,
    "counting": _counting,
    "full": _full,
}
