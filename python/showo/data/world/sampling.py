"""Scenes and what to say about them, by category, from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from showo.data.world.holdout import COUNTS, Holdout, is_reserved
from showo.data.world.objects import APART, CLEAR, COLOURS, EMOJI, LATTICE, SHAPES, Object
from showo.data.world.scene import RELATIONS, Demand, Scene, Wanted, holds

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
            example = _MAKERS[category](_Draw(generator, emoji))
        except _Impossible:
            continue
        if _belongs(example, holdout, split):
            return example


def _belongs(example: Example, holdout: Holdout, split: str) -> bool:
    if split == "held-out":
        return not holdout.demand_is_seen(example.demand)
    return holdout.scene_is_seen(example.scene) and is_reserved(example.scene) == (split == "val")


class _Impossible(Exception):
    """What was drawn does not go together: everything is to be drawn again."""


def _require(possible: bool) -> None:
    if not possible:
        raise _Impossible


class _Draw:
    """Random things and places."""

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
        _require(len({thing.name for thing in things}) == count)
        return things

    def placed(self, things: list[Object], lattice: tuple[int, ...] = LATTICE) -> tuple[Object, ...]:
        """The objects at random places where no two touch."""
        free = [(x, y) for x in lattice for y in lattice]
        placed = [_at(things[0], self.random.choice(free))]
        for thing in things[1:]:
            x, y = placed[-1].x, placed[-1].y
            free = [(u, v) for u, v in free if abs(u - x) >= APART or abs(v - y) >= APART]
            _require(bool(free))
            placed.append(_at(thing, self.random.choice(free)))
        return tuple(placed)


def _at(thing: Object, place: tuple[int, int]) -> Object:
    return replace(thing, x=place[0], y=place[1])


def _example(
    category: str, objects: tuple[Object, ...], *, coloured: bool = True, placed: bool = False, relation: str = ""
) -> Example:
    """All objects of a scene are wanted, by shape, and if so asked by colour and by place."""
    wanted = (Wanted(o.shape, o.colour if coloured else None, place=o.place if placed else None) for o in objects)
    return Example(Scene(objects), Demand(category, tuple(wanted), relation or None))


def _single(draw: _Draw) -> Example:
    return _example("single", draw.placed([draw.thing()]), coloured=False)


def _colours(draw: _Draw) -> Example:
    return _example("colours", draw.placed([draw.thing()]))


def _place(draw: _Draw) -> Example:
    return _example("place", draw.placed([draw.thing()], CLEAR), placed=True)


def _two(draw: _Draw) -> Example:
    first, second = draw.placed(draw.things(2))
    _require(first.shape != second.shape)
    return _example("two", (first, second), coloured=False)


def _binding(draw: _Draw) -> Example:
    return _example("binding", draw.placed(draw.things(2)))


def _position(draw: _Draw) -> Example:
    first, second = draw.placed(draw.things(2))
    relation = next((relation for relation in RELATIONS if holds(first, relation, second)), "")
    coloured = draw.coin()
    _require(relation != "" and (coloured or first.shape != second.shape))
    return _example("position", (first, second), coloured=coloured, relation=relation)


def _counting(draw: _Draw) -> Example:
    """Several of a shape: all of one colour, which is named, or each of any, which is not."""
    count, thing, coloured = draw.random.choice(COUNTS), draw.thing(), draw.coin()
    things = [thing] * count
    if not coloured and thing.colour is not None:
        things = [replace(thing, colour=draw.colour()) for _ in range(count)]
    wanted = Wanted(thing.shape, thing.colour if coloured else None, count)
    return Example(Scene(draw.placed(things)), Demand("counting", (wanted,)))


def _full(draw: _Draw) -> Example:
    """Three or four objects, all named, in half of the cases with their places."""
    things, placed = draw.things(draw.random.choice((3, 4))), draw.coin()
    return _example("full", draw.placed(things, CLEAR if placed else LATTICE), placed=placed)


_MAKERS: dict[str, Callable[[_Draw], Example]] = {
    "single": _single,
    "colours": _colours,
    "place": _place,
    "two": _two,
    "binding": _binding,
    "position": _position,
    "counting": _counting,
    "full": _full,
}
