"""What a model is asked to draw when it is judged, with what the picture then has to hold.

prompts/seen.json and prompts/held-out.json are lists of

    {"category": "position", "prompt": "a red star above a ring",
     "demand": {"category": "position", "relation": "above", "wanted": [
        {"shape": "star", "colour": "red", "count": 1, "place": null},
        {"shape": "ring", "colour": null, "count": 1, "place": null}]}}

`Demand.from_json(entry["demand"]).is_met_by(scene)` says whether the scene found in a picture is right. Categories take
turns, so that the first entries are a balanced sample. They are GenEval's six (single, two, counting, colours,
position, binding, which is its attribute binding), "place" and "full"; "single" has no held-out prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from showo.data.world.captions import caption
from showo.data.world.sampling import draw_example, split_categories
from showo.data.world.world import Kind, World

PROMPTS_PER_CATEGORY = 100


def make_prompts(world: World, split: str) -> Iterator[dict[str, Any]]:
    """Prompts of a split: "train" names combinations that were seen, "held-out" at least one that was not."""
    categories = split_categories(split)
    for number in range(PROMPTS_PER_CATEGORY * len(categories)):
        generator = world.generator(Kind.PROMPT, split, number)
        category = categories[number % len(categories)]
        demand = draw_example(generator, world.holdout, split, category, world.emoji).demand
        yield {"category": category, "prompt": caption(demand, generator), "demand": demand.to_json()}
