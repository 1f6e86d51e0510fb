"""Scenes: what the sampler promises of them, and what holds of every picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from showo.data.world.draw import draw_scene
from showo.data.world.holdout import Holdout, is_reserved
from showo.data.world.objects import COLOURS, EMOJI, PLACES, SHAPES, SIDE, SIZE, Object
from showo.data.world.sampling import CATEGORIES, SPLITS, Example, draw_example
from showo.data.world.scene import OPPOSITE, RELATIONS, Demand, Scene, Wanted, holds
from showo.seeds import seeded_random

HOLDOUT = Holdout.draw(seeded_random(0))


def examples(split: str, count: int = 400, emoji: float = 0.0) -> list[Example]:
    return [draw_example(seeded_random(1, i), HOLDOUT, split, emoji=emoji) for i in range(count)]


def test_the_holdout_takes_every_shape_and_colour_once() -> None:
    assert len(HOLDOUT.coloured) == 8
    assert sorted(shape for shape, _ in HOLDOUT.coloured) == sorted(SHAPES)
    assert sorted(colour for _, colour in HOLDOUT.coloured) == sorted(COLOURS)
    assert sorted(shape for pair in HOLDOUT.pairs for shape in pair) == sorted(SHAPES)
    assert len({shape for _, shape in HOLDOUT.counted}) == 4
    assert Holdout.from_json(HOLDOUT.to_json()) == HOLDOUT
    assert Holdout.draw(seeded_random(1)) != HOLDOUT


def test_a_scene_is_held_out_for_each_of_the_three_reasons() -> None:
    holdout = Holdout(
        frozenset({("star", "red")}), frozenset({frozenset({"ring", "cross"})}), frozenset({(2, "heart")})
    )
    star, ring, cross, heart = (Object(shape, "blue", 12, 12) for shape in ("star", "ring", "cross", "heart"))
    assert holdout.scene_is_seen(Scene((star, ring, heart)))
    assert holdout.scene_is_seen(Scene((heart, heart, heart)))
    assert not holdout.scene_is_seen(Scene((Object("star", "red", 12, 12),)))
    assert not holdout.scene_is_seen(Scene((cross, star, ring)))
    assert not holdout.scene_is_seen(Scene((heart, star, heart)))
    assert holdout.demand_is_seen(Demand("counting", (Wanted("heart", count=3),)))
    assert not holdout.demand_is_seen(Demand("counting", (Wanted("heart", count=2),)))
    assert not holdout.demand_is_seen(Demand("binding", (Wanted("heart", "red"), Wanted("heart", "blue"))))


@pytest.mark.parametrize("split", SPLITS)
def test_examples_belong_to_their_split(split: str) -> None:
    found = examples(split)
    for example in found:
        assert example.demand.is_met_by(example.scene)
        if split == "held-out":
            assert not HOLDOUT.demand_is_seen(example.demand)
            assert not HOLDOUT.scene_is_seen(example.scene)
        else:
            assert HOLDOUT.demand_is_seen(example.demand)
            assert HOLDOUT.scene_is_seen(example.scene)
            assert is_reserved(example.scene) == (split == "val")
    shares = Counter(example.demand.category for example in found)
    for category, percent in CATEGORIES.items():
        if split != "held-out":
            assert abs(shares[category] / 4 - percent) < 10, shares
    assert {len(example.scene.objects) for example in found} == {1, 2, 3, 4}


def test_a_picture_holds_its_objects_apart_on_white() -> None:
    for example in examples("train", 200):
        pixels = np.array(draw_scene(example.scene)).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        boxes = np.zeros((SIDE, SIDE), int)
        for thing in example.scene.objects:
            left, top = thing.x - SIZE // 2, thing.y - SIZE // 2
            assert min(left, top) >= 0
            assert max(left, top) + SIZE <= SIDE
            boxes[max(0, top - 4) : top + SIZE, max(0, left - 4) : left + SIZE] += 1
            inside = pixels[top : top + SIZE, left : left + SIZE].reshape(-1, 3)
            assert COLOURS[thing.colour or ""] in {tuple(pixel) for pixel in inside.tolist()}
        assert boxes.max() == 1, "two objects are nearer than 4 pixels"
        ground = np.pad(boxes, 4)[8:, 8:][:SIDE, :SIDE]  # boxes, not widened
        assert (pixels[(boxes == 0) & (ground == 0)] == 255).all()


def test_edges_are_smooth_and_all_shapes_differ() -> None:
    masks = {}
    for shape in SHAPES:
        pixels = np.array(draw_scene(Scene((Object(shape, "black", 32, 32),))))[..., 0]
        assert ((pixels > 40) & (pixels < 240)).sum() >= 8 or shape in ("square", "cross")
        masks[shape] = pixels < 128
    for one in SHAPES:
        for other in SHAPES:
            assert one == other or (masks[one] ^ masks[other]).sum() > 40, (one, other)


def test_emoji_are_objects_by_option() -> None:
    found = [thing for example in examples("train", 300, emoji=0.5) for thing in example.scene.objects]
    emoji = [thing for thing in found if thing.colour is None]
    assert {thing.shape for thing in emoji} == set(EMOJI)
    assert 0.3 < len(emoji) / len(found) < 0.6
    pictures = {draw_scene(Scene((Object(name, None, 32, 32),))).tobytes() for name in EMOJI}
    assert len(pictures) == len(EMOJI)
    assert all(thing.colour for example in examples("train") for thing in example.scene.objects)


def test_places_and_relations() -> None:
    assert [Object("star", "red", x, y).place for y in (12, 32, 52) for x in (12, 32, 52)] == list(PLACES)
    assert Object("star", "red", 20, 32).place == "left"
    assert not Object("star", "red", 20, 32).place_is_clear
    upper, lower = Object("star", "red", 28, 12), Object("ring", "blue", 32, 44)
    for relation in RELATIONS:
        assert holds(upper, relation, lower) == (relation == "above")
        assert holds(lower, OPPOSITE[relation], upper) == (relation == "above")
    assert not any(holds(upper, relation, Object("ring", "blue", 52, 36)) for relation in RELATIONS)  # diagonal


def test_a_demand_is_exact() -> None:
    star, ring = Object("star", "red", 12, 12), Object("ring", "blue", 12, 52)
    demand = Demand("position", (Wanted("star", "red"), Wanted("ring")), "above")
    assert demand.is_met_by(Scene((ring, star)))
    assert not demand.is_met_by(Scene((star,)))
    assert not demand.is_met_by(Scene((star, ring, Object("ring", "blue", 52, 52))))
    assert not demand.is_met_by(Scene((Object("star", "blue", 12, 12), ring)))
    assert not Demand("position", demand.wanted, "below").is_met_by(Scene((star, ring)))
    assert Demand("place", (Wanted("ring", place="bottom left"),)).is_met_by(Scene((ring,)))
    assert Demand.from_json(demand.to_json()) == demand
    assert Scene.from_json(Scene((star, ring)).to_json()) == Scene((star, ring))


def test_an_example_depends_on_seed_and_number_alone() -> None:
    assert examples("train", 20) == examples("train", 30)[:20]
    assert len(set(examples("train", 50))) > 45
