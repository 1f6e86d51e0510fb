"""Words for scenes: captions from demands, and the objects that any text of this world mentions.

Every object is mentioned in one way: an article or a number, the colour if it is told, the shape ("a red star", "three
rings"). So `mentions` reads back whatever was written here, and also what a model wrote in the same words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from showo.data.world.objects import COLOURS, EMOJI, SHAPES
from showo.data.world.scene import Demand, Wanted

NUMBERS = ("zero", "one", "two", "three", "four")
AT_PLACE = {"top": "at the top", "bottom": "at the bottom", "left": "on the left", "right": "on the right"}
_FRAMES = ("{}", "{}", "{}", "a picture of {}", "we see {}")
_RELATIONS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}


def plural(shape: str) -> str:
    if shape == "fish":
        return shape
    return shape + ("es" if shape.endswith("s") else "s")


def with_article(name: str) -> str:
    """ "a red star", "an orange ring"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def at_place(place: str) -> str:
    """ "top left" becomes "in the top left", "top" becomes "at the top"."""
    return AT_PLACE.get(place, f"in the {place}")


def noun(wanted: Wanted) -> str:
    """ "a red star", "three stars", without the place."""
    name = plural(wanted.shape) if wanted.count > 1 else wanted.shape
    if wanted.colour:
        name = f"{wanted.colour} {name}"
    return f"{NUMBERS[wanted.count]} {name}" if wanted.count > 1 else with_article(name)


def enumerated(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def caption(demand: Demand, generator: random.Random) -> str:
    """One of the phrasings of a demand: lower case, no full stop."""
    phrase = _phrase(demand, generator)
    return phrase if demand.category == "full" else generator.choice(_FRAMES).format(phrase)


def _phrase(demand: Demand, generator: random.Random) -> str:
    nouns = [noun(wanted) for wanted in demand.wanted]
    places = [wanted.place for wanted in demand.wanted]
    if demand.relation:
        return f"{nouns[0]} {generator.choice(_RELATIONS[demand.relation])} {nouns[1]}"
    if places[0]:  # corners take few words where there are several objects, lest rows grow long
        short = len(places) > 1
        nouns = [
            f"{thing} {place if short and ' ' in place else at_place(place)}"
            for thing, place in zip(nouns, places)
            if place
        ]
    if len(nouns) == 2:
        return generator.choice(("{} and {}", "{} with {}")).format(*nouns)
    return enumerated(nouns)


_SHAPE_NAMES = {name: shape for shape in (*SHAPES, *EMOJI) for name in (shape, plural(shape))}
_COLOUR = "|".join(COLOURS)
_MENTION = re.compile(
    rf"\b(?:(?P<number>{'|'.join(NUMBERS)}) )?(?:(?P<before>{_COLOUR}) )?"
    rf"(?P<shape>{'|'.join(_SHAPE_NAMES)})\b(?: (?P<after>{_COLOUR})\b)?"
)


def mentions(text: str) -> list[Wanted]:
    """The objects that a text mentions, in order: shape, colour if told, and how many ("the star" is one).

    What is asked for or done counts too: "is the star red?" and "paint the star red" mention a red star.
    """
    found = []
    for match in _MENTION.finditer(text):
        shape, count = _SHAPE_NAMES[match["shape"]], NUMBERS.index(match["number"] or "one")
        colours = [colour for colour in (match["before"], match["after"]) if colour] or [None]
        found += [Wanted(shape, colour, count) for colour in colours]
    return found
