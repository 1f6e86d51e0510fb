"""Questions about scenes: their answers are right, name nothing that is held out, and are hard to guess blindly."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from showo.data.world.captions import AT_PLACE, NUMBERS, plural
from showo.data.world.objects import Object
from showo.data.world.questions import KINDS, MAX_QUESTIONS, Interview, make_interview
from showo.data.world.sampling import SPLITS
from showo.data.world.scene import Scene, holds
from showo.data.world.world import Kind, World
from tests.showo.world.holdout_scan import names_held_out, shows_held_out

WORLD = World(3, 1000)


def interviews(split: str, count: int, world: World = WORLD) -> list[Interview]:
    return [make_interview(world, split, world.generator(Kind.QUESTION, split, i)) for i in range(count)]


def called(name: str, scene: Scene) -> Object:
    """The one object of that name, "star" or "red star"."""
    (found,) = [thing for thing in scene.objects if name in (thing.shape, thing.name)]
    return found


def at(place: str, scene: Scene) -> Object:
    """The one object "at the top" or "in the top left"."""
    places = {phrase: name for name, phrase in AT_PLACE.items()}
    name = places.get(place, place.removeprefix("in the "))
    (found,) = [thing for thing in scene.objects if thing.place == name]
    return found


def answer(question: str, scene: Scene) -> str:
    """What a careful reader answers; fails where the question has no single answer."""
    relation = "(above|below|left of|right of)"
    if match := re.fullmatch(r"what colour is the object (.+)\?", question):
        return str(at(match[1], scene).colour)
    if match := re.fullmatch(r"what colour is the (.+)\?", question):
        return str(called(match[1], scene).colour)
    if match := re.fullmatch(r"which shape is (.+)\?", question):
        (found,) = [thing for thing in scene.objects if thing.colour == match[1]]
        return found.shape
    if match := re.fullmatch(rf"what is {relation} the (.+)\?", question):
        (found,) = [thing for thing in scene.objects if holds(thing, match[1], called(match[2], scene))]
        return found.shape
    if match := re.fullmatch(r"what is (.+)\?", question):
        return at(match[1], scene).shape
    if question == "how many objects are there?":
        return NUMBERS[len(scene.objects)]
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return NUMBERS[sum(plural(thing.shape) == match[1] for thing in scene.objects)]
    if match := re.fullmatch(r"where is the (.+)\?", question):
        return called(match[1], scene).place
    if match := re.fullmatch(r"is there an? (.+)\?", question):
        return "yes" if match[1] in [thing.name for thing in scene.objects] else "no"
    if match := re.fullmatch(rf"is the (.+?) {relation} the (.+)\?", question):
        return "yes" if holds(called(match[1], scene), match[2], called(match[3], scene)) else "no"
    match = re.fullmatch(r"is the (\S+) (\S+)\?", question)
    assert match, question
    return "yes" if called(match[1], scene).colour == match[2] else "no"


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_combinations_where_they_belong(split: str) -> None:
    found = interviews(split, 300)
    for interview in found:
        for question in interview.questions:
            assert question.answer == answer(question.text, interview.scene), (question, interview.scene)
        assert shows_held_out(interview.scene, WORLD.holdout) == (split == "held-out")
        words = " ".join(f"{question.text} {question.answer}" for question in interview.questions)
        if split != "held-out":
            names = " ".join(thing.shape for thing in interview.scene.objects)
            assert not names_held_out(f"{words} beside {names}", WORLD.holdout), words
    counts = {question.answer for interview in found for question in interview.questions if question.kind == "count"}
    assert counts == set(NUMBERS[1:] if split == "held-out" else NUMBERS)
    kinds = Counter(question.kind for interview in found for question in interview.questions)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) < 1.5 * min(kinds.values())
    assert {len(interview.questions) for interview in found} == set(range(1, MAX_QUESTIONS + 1))


def test_a_blind_guesser_scores_low() -> None:
    """It knows the most frequent answer to the very question, or else to its kind, from other pictures."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    right, asked = Counter[str](), Counter[str]()
    for number, interview in enumerate(interviews("train", 2400)):
        for question in interview.questions:
            if number < 1600:
                by_text[question.text][question.answer] += 1
                by_kind[question.kind][question.answer] += 1
            else:
                known = by_text[question.text] or by_kind[question.kind]
                asked[question.kind] += 1
                right[question.kind] += known.most_common(1)[0][0] == question.answer
    limits = {"colour": 0.25, "shape": 0.35, "count": 0.4, "where": 0.3, "yes-no": 0.6}
    for kind, limit in limits.items():
        assert right[kind] / asked[kind] < limit, (kind, right[kind] / asked[kind])


def test_a_world_with_emoji_asks_about_them() -> None:
    found = interviews("train", 100, World(3, 1000, emoji=0.4))
    for interview in found:
        for question in interview.questions:
            assert question.answer == answer(question.text, interview.scene)
    assert any("rocket" in question.text for interview in found for question in interview.questions)
