"""Questions about scenes, one to three in a row, with answers of a word or two.

A guesser who never sees the picture gains little: all kinds of questions are as frequent, numbers and yes and no are
drawn before the scene is, what a "no" asks for is half right (the shape in another colour, the opposite direction),
and no answer stands in an earlier question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from showo.data.world.captions import NUMBERS, at_place, mentions, plural, with_article
from showo.data.world.holdout import Holdout
from showo.data.world.objects import COLOURS, SHAPES, Object
from showo.data.world.sampling import Draw, Impossible, require, require_split
from showo.data.world.scene import MIN_OFFSET, OPPOSITE, RELATIONS, Scene, holds
from showo.data.world.world import World

MAX_QUESTIONS = 3
_TRIES = 10  # to ask about a scene, before another is drawn


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Interview:
    scene: Scene
    questions: tuple[Question, ...]


def make_interview(world: World, split: str, generator: random.Random) -> Interview:
    """Questions about a scene of a split. Held out, each is about an object of a held-out combination."""
    kinds = generator.sample(KINDS, generator.randint(1, MAX_QUESTIONS))
    kinds.sort(key=lambda kind: kind != "shape")  # first, as all other questions may name the shape
    answer_yes = generator.random() < 0.5
    # Held out, the shape that is counted is there, as it is a part of what is held out.
    count = generator.randint(1 if split == "held-out" else 0, 4) if "count" in kinds else 1
    while True:
        try:
            scene = _scene(Draw(generator, world.emoji), count, world.holdout, split)
        except Impossible:
            continue
        for _ in range(_TRIES):
            try:
                return Interview(scene, _questions(scene, kinds, generator, count, answer_yes, world.holdout, split))
            except Impossible:
                continue


def _scene(draw: Draw, count: int, holdout: Holdout, split: str) -> Scene:
    """Up to four objects, the first `count` of them of one shape, the others of other shapes."""
    total = draw.random.randint(max(1, count), 4)
    repeated, others = draw.repeated(draw.thing(), count), [draw.thing() for _ in range(total - count)]
    require(not repeated or all(thing.shape != repeated[0].shape for thing in others))
    things = repeated + others
    require(holdout.scene_is_seen(Scene(tuple(things))) == (split != "held-out"))  # before they have places
    scene = Scene(draw.placed(things))
    require_split(scene, holdout, split)
    return scene


def _questions(
    scene: Scene, kinds: list[str], generator: random.Random, count: int, answer_yes: bool, holdout: Holdout, split: str
) -> tuple[Question, ...]:
    """A question of each kind, about random objects of the scene. Raises Impossible where it came out amiss."""
    subjects = holdout.offenders(scene) if split == "held-out" else scene.objects
    asked: list[Question] = []
    words = ""
    for kind in kinds:
        question = Question(kind, *_ASKERS[kind](_Asker(scene, subjects, generator, count, answer_yes)))
        require(kind in ("count", "yes-no") or question.answer not in words)
        asked.append(question)
        words += f"{question.text} {question.answer} "
    require(split == "held-out" or holdout.text_is_seen(mentions(words), scene))
    return tuple(asked)


class _Asker:
    """What questions are made from; a question that the scene does not allow raises Impossible."""

    def __init__(
        self, scene: Scene, subjects: Sequence[Object], generator: random.Random, count: int, answer_yes: bool
    ) -> None:
        self.scene, self.random, self.count, self.answer_yes = scene, generator, count, answer_yes
        require(len(subjects) > 0)
        self.subject = generator.choice(subjects)
        self.others = [thing for thing in scene.objects if thing is not self.subject]

    def alone(self, matches: Callable[[Object], bool]) -> None:
        """Requires that the subject is the only object which matches."""
        require(matches(self.subject) and not any(map(matches, self.others)))

    def name(self, thing: Object) -> str:
        """How a text calls an object that it takes as known: "star", where there is one star, else "red star"."""
        if self.scene.counts[thing.shape] == 1 and (thing.colour is None or self.random.random() < 0.5):
            return thing.shape
        require([other.name for other in self.scene.objects].count(thing.name) == 1)
        return thing.name

    def another(self, values: Iterable[str], value: str | None) -> str:
        """One of the values that is not `value`."""
        return self.random.choice([other for other in values if other != value])

    def placed(self) -> str:
        """The place of the subject, clear, with no other object near."""
        require(self.subject.place_is_clear)
        self.alone(lambda thing: thing.place == self.subject.place)
        return self.subject.place


def _colour(asker: _Asker) -> tuple[str, str]:
    subject = asker.subject
    if asker.random.random() < 0.25:
        question = f"what colour is the object {at_place(asker.placed())}?"
    else:
        asker.alone(lambda thing: thing.shape == subject.shape)
        question = f"what colour is the {subject.shape}?"
    require(subject.colour is not None)
    return question, subject.colour or ""


def _shape(asker: _Asker) -> tuple[str, str]:
    subject, way = asker.subject, asker.random.choice(("colour", "place", "relation"))
    if way == "colour":
        require(subject.colour is not None)
        asker.alone(lambda thing: thing.colour == subject.colour)
        return f"which shape is {subject.colour}?", subject.shape
    if way == "place":
        return f"what is {at_place(asker.placed())}?", subject.shape
    require(len(asker.others) > 0)
    anchor = asker.random.choice(asker.others)
    relation = _relation(subject, anchor)
    rest = [thing for thing in asker.others if thing is not anchor]
    require(not any(_lies(thing, relation, anchor) for thing in rest))
    return f"what is {relation} the {asker.name(anchor)}?", subject.shape


def _count(asker: _Asker) -> tuple[str, str]:
    """The scene was drawn with `count` objects of its first shape."""
    if asker.random.random() < 0.3 and len(asker.scene.objects) == asker.count + 1:
        return "how many objects are there?", NUMBERS[asker.count + 1]
    if asker.count == 0:
        shape = asker.random.choice([shape for shape in SHAPES if shape not in asker.scene.counts])
    else:
        shape = asker.scene.objects[0].shape
        require(asker.subject.shape == shape)
    return f"how many {plural(shape)} are there?", NUMBERS[asker.count]


def _where(asker: _Asker) -> tuple[str, str]:
    require(asker.subject.place_is_clear)
    return f"where is the {asker.name(asker.subject)}?", asker.subject.place


def _yes_no(asker: _Asker) -> tuple[str, str]:
    subject, answer = asker.subject, "yes" if asker.answer_yes else "no"
    way = asker.random.choice(("there", "colour", "relation"))
    if way == "relation":
        require(len(asker.others) > 0)
        anchor = asker.random.choice(asker.others)
        relation = _relation(subject, anchor)
        relation = relation if asker.answer_yes else OPPOSITE[relation]
        return f"is the {asker.name(subject)} {relation} the {asker.name(anchor)}?", answer
    require(subject.colour is not None)
    if way == "colour":
        asker.alone(lambda thing: thing.shape == subject.shape)
        colour = subject.colour if asker.answer_yes else asker.another(COLOURS, subject.colour)
        return f"is the {subject.shape} {colour}?", answer
    name = subject.name
    if not asker.answer_yes:
        shape, colour = subject.shape, subject.colour
        if asker.random.random() < 0.5:
            shape = asker.another(SHAPES, shape)
        else:
            colour = asker.another(COLOURS, colour)
        name = f"{colour} {shape}"
        require(name not in [thing.name for thing in asker.scene.objects])
    return f"is there {with_article(name)}?", answer


def _relation(first: Object, second: Object) -> str:
    """How `first` lies to `second`. Raises Impossible where that is not plain."""
    found = [relation for relation in RELATIONS if holds(first, relation, second)]
    require(len(found) == 1)
    return found[0]


def _lies(first: Object, relation: str, second: Object) -> bool:
    """Whether `first` lies in a direction of `second` at all, also if more so in another."""
    across, down = first.x - second.x, first.y - second.y
    along = {"above": -down, "below": down, "left of": -across, "right of": across}[relation]
    return along >= MIN_OFFSET


_ASKERS: dict[str, Callable[[_Asker], tuple[str, str]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "where": _where,
    "yes-no": _yes_no,
}
KINDS = tuple(_ASKERS)
