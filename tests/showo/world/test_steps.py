"""Sequences of changes, and texts: each picture follows from the one before, and nothing held out is told."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from showo.data.world.holdout import is_reserved
from showo.data.world.objects import Object
from showo.data.world.scene import Demand, Scene, Wanted
from showo.data.world.steps import Step, make_steps
from showo.data.world.stories import make_story
from showo.data.world.world import Kind, World
from tests.showo.world.holdout_scan import names_held_out, shows_held_out

WORLD = World(5, 1000)


def sequences(split: str, count: int) -> list[tuple[Step, ...]]:
    return [make_steps(WORLD, split, WORLD.generator(Kind.STEP, split, i)) for i in range(count)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_sequences_name_and_show_nothing_held_out(split: str) -> None:
    lengths = Counter[int]()
    for steps in sequences(split, 150):
        lengths[len(steps)] += 1
        told = ". ".join(step.caption for step in steps)
        assert not names_held_out(told, WORLD.holdout), told
        for step in steps:
            assert step.demand.is_met_by(step.scene)
            assert not shows_held_out(step.scene, WORLD.holdout)
        assert is_reserved(steps[-1].scene) == (split == "val")
    assert set(lengths) == {2, 3}


def test_each_change_changes_one_object_as_its_caption_says() -> None:
    changes = Counter[str]()
    for steps in sequences("train", 200):
        for before, after in pairwise(steps):
            gone = set(before.scene.objects) - set(after.scene.objects)
            new = set(after.scene.objects) - set(before.scene.objects)
            verb = after.caption.split()[0]
            changes[verb] += 1
            assert verb == after.demand.category
            assert (len(gone), len(new)) == {"add": (0, 1), "remove": (1, 0)}.get(verb, (1, 1)), after.caption
            assert not after.demand.is_met_by(before.scene), after.caption
            for thing in gone:
                assert f"the {thing.shape}" in after.caption or f"the {thing.name}" in after.caption
            for thing in new:
                told = {"add": thing.name, "paint": str(thing.colour), "move": f"to the {thing.place}"}[verb]
                assert told in after.caption
    assert set(changes) == {"add", "remove", "paint", "move"}


def test_what_was_not_touched_has_to_stay() -> None:
    star, ring, moved = (Object("star", "red", 12, 12), Object("ring", "blue", 48, 48), Object("ring", "blue", 48, 12))
    demand = Demand("paint", (Wanted("star", "red", place="top left"), Wanted("ring", "blue", place="bottom right")))
    assert demand.is_met_by(Scene((ring, star)))
    assert not demand.is_met_by(Scene((moved, star)))


def test_stories_tell_nothing_held_out() -> None:
    stories = [make_story(WORLD, WORLD.generator(Kind.TEXT, "train", i)) for i in range(400)]
    for story in stories:
        assert not names_held_out(story, WORLD.holdout), story
        assert story.endswith(".")
    assert len(set(stories)) > 300
    for words in ("what colour is", "now we see", "so the", "there are three objects"):
        assert any(words in story for story in stories), words
