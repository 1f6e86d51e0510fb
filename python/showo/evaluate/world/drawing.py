"""Text to image: prompts, what is wrong with the pictures drawn for them, and GenEval's categories.

GenEval lets other objects stand beside those that a prompt names, except where it counts. The captions of this world
name all that is on a picture, so here a picture with one object too many is wrong in every category.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from showo.data.world.objects import EMOJI, Object
from showo.data.world.scene import Demand, Scene
from showo.engine.pipeline import ShowoPipeline
from showo.errors import DataError
from showo.evaluate.world.case import Advance, Case
from showo.evaluate.world.judge import FoundObject, as_scene, find_objects
from showo.evaluate.world.settings import Settings
from showo.pieces import pieces


@dataclass(frozen=True)
class Prompt:
    text: str
    demand: Demand


def read_prompts(world: Path, column: str) -> list[Prompt]:
    """The prompts of a column of the table. Raises DataError where the file is missing, empty or no list of prompts."""
    path = world / "prompts" / f"{column}.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        prompts = [Prompt(str(entry["prompt"]), Demand.from_json(entry["demand"])) for entry in entries]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no list of prompts ({type(error).__name__}: {error}); make the world again"
        ) from error
    if not prompts:
        raise DataError(f"{path} holds no prompts; make the world again")
    return prompts


def draw_prompts(pipe: ShowoPipeline, prompts: Sequence[Prompt], settings: Settings, advance: Advance) -> list[Case]:
    """A picture for each prompt, judged. Picture i has seed + i."""
    cases = []
    for number, part in enumerate(pieces(prompts, settings.batch)):
        pictures = pipe.generate(
            [prompt.text for prompt in part],
            steps=settings.steps,
            guidance=settings.guidance,
            seed=settings.seed + number * settings.batch,
            batch=settings.batch,
            progress=False,
        )
        for prompt, picture in zip(part, pictures):
            found = find_objects(picture)
            fault = find_fault(prompt.demand, as_scene(found))
            cases.append(Case(prompt.demand.category, prompt.text, in_words(found), fault, picture))
        advance(len(part))
    return cases


def find_fault(demand: Demand, scene: Scene | None) -> str | None:
    """The first of these that keeps a scene from what is demanded; None if it is as demanded.

    "garbage": something is no object of the world (`scene` is None). "number": of objects. "shape", "colour", "place",
    "relation": this is wrong, while without it and what follows in this list the objects would fit.
    """
    if scene is None:
        return "garbage"
    if len(scene.objects) != sum(wanted.count for wanted in demand.wanted):
        return "number"
    related = replace(demand, relation=None)
    coloured = replace(related, wanted=tuple(replace(wanted, place=None) for wanted in demand.wanted))
    shaped = replace(coloured, wanted=tuple(replace(wanted, colour=None) for wanted in coloured.wanted))
    for fault, weaker in (("shape", shaped), ("colour", coloured), ("place", related), ("relation", demand)):
        if not weaker.is_met_by(scene):
            return fault
    return None


def in_words(things: Scene | Sequence[FoundObject]) -> str:
    """ "red star (12, 40), blue ? (44, 20)": a question mark for what is no shape or colour of the world."""
    objects = things.objects if isinstance(things, Scene) else things
    return ", ".join(f"{_name(thing)} ({thing.x}, {thing.y})" for thing in objects) or "nothing"


def _name(thing: Object | FoundObject) -> str:
    """Colour and shape, or which emoji it is."""
    return thing.shape if thing.shape in EMOJI else f"{thing.colour or '?'} {thing.shape or '?'}"


def objects_of(scene: Scene) -> str:
    """ "1 object", "2 objects": a group of cases."""
    count = len(scene.objects)
    return f"{count} object{'s' if count != 1 else ''}"
