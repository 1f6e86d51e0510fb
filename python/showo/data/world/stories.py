"""Texts about scenes, without pictures: what there is, how it lies, what is asked about it, what becomes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

from showo.data.world.captions import NUMBERS, enumerated, noun
from showo.data.world.questions import make_interview
from showo.data.world.sampling import draw_example
from showo.data.world.scene import OPPOSITE, RELATIONS, Scene, Wanted, holds
from showo.data.world.steps import description, make_steps
from showo.data.world.world import World


def make_story(world: World, generator: random.Random) -> str:
    """A text of a few sentences that mentions no held-out combination."""
    return generator.choice(_FORMS)(world, generator)


def _questions(world: World, generator: random.Random) -> str:
    questions = make_interview(world, "train", generator).questions
    return " ".join(f"{question.text} {question.answer}." for question in questions)


def _changes(world: World, generator: random.Random) -> str:
    first, *changed = make_steps(world, "train", generator)
    told = "".join(f"{step.caption}. " for step in changed)
    return f"we see {first.caption}. {told}now we see {description(changed[-1].scene)}."


def _relations(world: World, generator: random.Random) -> str:
    scene = _scene(world, generator, "full")
    told = [
        f"the {one.name} is {relation} the {other.name}, so the {other.name} is {OPPOSITE[relation]} the {one.name}."
        for one, other in combinations(scene.objects, 2)
        for relation in RELATIONS
        if holds(one, relation, other)
    ]
    return " ".join([f"we see {description(scene)}.", *generator.sample(told, min(2, len(told)))])


def _numbers(world: World, generator: random.Random) -> str:
    scene = _scene(world, generator, generator.choice(("full", "two", "counting")))
    nouns = [noun(Wanted(shape, count=count)) for shape, count in scene.counts.items()]
    return f"we see {enumerated(nouns)}. there are {NUMBERS[len(scene.objects)]} objects."


def _scene(world: World, generator: random.Random, category: str) -> Scene:
    return draw_example(generator, world.holdout, "train", category, world.emoji).scene


_FORMS: tuple[Callable[[World, random.Random], str], ...] = (_questions, _changes, _relations, _numbers)
