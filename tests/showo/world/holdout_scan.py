"""Finding held-out combinations in texts and pictures, in another way than the package does it."""

from __future__ import annotations

import re
from itertools import combinations, pairwise

from showo.data.world.captions import plural
from showo.data.world.holdout import Holdout
from showo.data.world.objects import COLOURS, SHAPES
from showo.data.world.scene import Scene

_SINGULAR = {plural(shape): shape for shape in SHAPES}
_COUNTS = {"two": 2, "three": 3, "four": 4}


def names_held_out(text: str, holdout: Holdout, *, once: bool = False) -> bool:
    """Whether a text names a held-out combination, judged word by word.

    once: every mention is of another object, as in a caption: "a red star and a blue star" are two stars.
    """
    words = re.findall("[a-z]+", text.lower())
    plain = [_SINGULAR.get(word, word) for word in words]
    pairs = {frozenset(pair) for pair in combinations(set(plain) & set(SHAPES), 2)}
    coloured = set()
    for one, other in pairwise(plain):
        if other in SHAPES and one in COLOURS:
            coloured.add((other, one))  # "red star"
        if one in SHAPES and other in COLOURS:
            coloured.add((one, other))  # "is the star red?", "paint the star red"
    counted = {
        (_COUNTS[word], _SINGULAR[follower])
        for i, word in enumerate(words)
        for follower in words[i + 1 : i + 3]
        if word in _COUNTS and follower in _SINGULAR
    }
    if once:
        counted |= {(words.count(shape), shape) for shape in SHAPES}
    return bool(holdout.pairs & pairs or holdout.coloured & coloured or holdout.counted & counted)


def shows_held_out(scene: Scene, holdout: Holdout) -> bool:
    """Whether a picture shows a held-out combination."""
    shapes = [thing.shape for thing in scene.objects]
    return (
        any((thing.shape, thing.colour) in holdout.coloured for thing in scene.objects)
        or any({one, other} in holdout.pairs for one in shapes for other in shapes)
        or any((shapes.count(shape), shape) in holdout.counted for shape in shapes)
    )
