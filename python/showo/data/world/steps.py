"""Sequences of pictures: a scene that is described, then changed once or twice as the next caption says."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from showo.data.world.captions import at_place, enumerated, mentions, with_article
from showo.data.world.holdout import Holdout, is_reserved
from showo.data.world.objects import CLEAR, COLOURS, LATTICE, Object
from showo.data.world.sampling import Draw, Impossible, free_points, require
from showo.data.world.scene import RELATIONS, Demand, Scene, Wanted, holds
from showo.data.world.world import World

MAX_OBJECTS = 4
Objects = tuple[Object, ...]


@dataclass(frozen=True)
class Step:
    """A picture and its caption: the first one's is a description, the others' say what was done.

    demand: what the picture has to hold. Its category is "full", "add", "remove", "paint" or "move"; objects that were
    not touched have to be in their old places, if those are clear.
    """

    scene: Scene
    caption: str
    demand: Demand


def make_steps(world: World, split: str, generator: random.Random) -> tuple[Step, ...]:
    """Two or three steps; what the last one of "val" shows is never shown in "train"."""
    draw = Draw(generator, world.emoji)
    changes = [generator.choice(list(_CHANGES)) for _ in range(generator.randint(1, 2))]
    while True:
        try:
            steps = _draw_steps(draw, changes, world.holdout)
        except Impossible:
            continue
        reserved = [is_reserved(step.scene) for step in steps]
        words = mentions(". ".join(step.caption for step in steps))
        if (reserved[-1] if split == "val" else not any(reserved)) and all(
            world.holdout.text_is_seen(words, step.scene) for step in steps
        ):
            return steps


def description(scene: Scene) -> str:
    """All objects by name."""
    return enumerated([with_article(thing.name) for thing in scene.objects])


def _draw_steps(draw: Draw, changes: Sequence[str], holdout: Holdout) -> tuple[Step, ...]:
    things = draw.things(draw.random.randint(1, MAX_OBJECTS - 1))
    require(holdout.scene_is_seen(Scene(tuple(things))))  # before they have places
    objects = draw.placed(things)
    scene = Scene(objects)
    steps = [Step(scene, description(scene), Demand("full", tuple(_named(thing) for thing in objects)))]
    for change in changes:
        objects, caption, demand = _CHANGES[change](draw, objects)
        scene = Scene(objects)
        require(len({thing.name for thing in objects}) == len(objects) and holdout.scene_is_seen(scene))
        steps.append(Step(scene, caption, demand))
    return tuple(steps)


def _named(thing: Object) -> Wanted:
    return Wanted(thing.shape, thing.colour)


def _kept(things: Sequence[Object]) -> tuple[Wanted, ...]:
    """What is wanted of objects that nobody touched."""
    return tuple(
        Wanted(thing.shape, thing.colour, place=thing.place if thing.place_is_clear else None) for thing in things
    )


def _call(draw: Draw, thing: Object, objects: Objects) -> str:
    """ "the star" where there is one star, and always "the red star" where there are several."""
    alone = [other.shape for other in objects].count(thing.shape) == 1
    return f"the {thing.shape if alone and draw.coin() else thing.name}"


def _pick(draw: Draw, objects: Objects) -> tuple[Object, Objects]:
    """One object, and the others."""
    thing = draw.random.choice(objects)
    return thing, tuple(other for other in objects if other is not thing)


def _free(thing: Object, others: Objects, lattice: tuple[int, ...]) -> list[Object]:
    """`thing` at every point of the lattice that is free."""
    points = free_points(lattice, [(other.x, other.y) for other in others])
    return [Object(thing.shape, thing.colour, x, y) for x, y in points]


def _choose(draw: Draw, objects: Sequence[Object]) -> Object:
    require(len(objects) > 0)
    return draw.random.choice(objects)


def _add(draw: Draw, objects: Objects) -> tuple[Objects, str, Demand]:
    require(len(objects) < MAX_OBJECTS)
    new = draw.thing()
    what = f"add {with_article(new.name)}"
    if draw.coin():
        new = _choose(draw, _free(new, objects, CLEAR))
        wanted = (replace(_named(new), place=new.place), *_kept(objects))
        return (*objects, new), f"{what} {at_place(new.place)}", Demand("add", wanted)
    anchor, others = _pick(draw, objects)
    relation = draw.random.choice(RELATIONS)
    new = _choose(draw, [place for place in _free(new, objects, LATTICE) if holds(place, relation, anchor)])
    caption = f"{what} {relation} {_call(draw, anchor, objects)}"
    return (*objects, new), caption, Demand("add", (_named(new), *_kept((anchor, *others))), relation)


def _remove(draw: Draw, objects: Objects) -> tuple[Objects, str, Demand]:
    require(len(objects) > 1)
    thing, others = _pick(draw, objects)
    return others, f"remove {_call(draw, thing, objects)}", Demand("remove", _kept(others))


def _paint(draw: Draw, objects: Objects) -> tuple[Objects, str, Demand]:
    thing, others = _pick(draw, objects)
    require(thing.colour is not None)
    painted = replace(thing, colour=draw.random.choice([colour for colour in COLOURS if colour != thing.colour]))
    caption = f"paint {_call(draw, thing, objects)} {painted.colour}"
    return (*others, painted), caption, Demand("paint", _kept((painted, *others)))


def _move(draw: Draw, objects: Objects) -> tuple[Objects, str, Demand]:
    thing, others = _pick(draw, objects)
    moved = _choose(draw, [place for place in _free(thing, others, CLEAR) if place.place != thing.place])
    caption = f"move {_call(draw, thing, objects)} to the {moved.place}"
    return (*others, moved), caption, Demand("move", _kept((moved, *others)))


_CHANGES: dict[str, Callable[[Draw, Objects], tuple[Objects, str, Demand]]] = {
    "add": _add,
    "remove": _remove,
    "paint": _paint,
    "move": _move,
}
