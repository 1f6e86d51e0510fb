"""Step sequences: the last picture of a sequence, drawn after the true pictures and captions before it."""

from __future__ import annotations

from collections.abc import Sequence

from showo.data.world.draw import draw_scene
from showo.data.world.steps import Step, make_steps
from showo.data.world.world import Kind, World
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.case import Advance, Case
from showo.evaluate.world.drawing import find_fault, in_words
from showo.evaluate.world.judge import as_scene, find_objects
from showo.evaluate.world.settings import Settings
from showo.pieces import pieces


def sequences(world: World, count: int) -> list[tuple[Step, ...]]:
    """The first sequences of steps/val.jsonl, at most `count`; no training step showed the last picture of any."""
    numbers = range(min(count, world.count(Kind.STEP, "val")))
    return [make_steps(world, "val", world.generator(Kind.STEP, "val", number)) for number in numbers]


def continue_sequences(
    pipe: ShowoPipeline, told: Sequence[tuple[Step, ...]], settings: Settings, advance: Advance
) -> list[Case]:
    """What the last caption of every sequence asks for, drawn and judged. Picture i has seed + i."""
    cases = []
    for number, part in enumerate(pieces(told, settings.batch)):
        pictures = pipe.generate(
            [steps[-1].caption for steps in part],
            earlier=[[(step.caption, draw_scene(step.scene)) for step in steps[:-1]] for steps in part],
            steps=settings.steps,
            guidance=settings.step_guidance,
            seed=settings.seed + number * settings.batch,
            batch=settings.batch,
            progress=False,
        )
        for steps, picture in zip(part, pictures):
            found = find_objects(picture)
            fault = find_fault(steps[-1].demand, as_scene(found))
            asked = f"{steps[-1].caption} (after: {in_words(steps[-2].scene)})"
            cases.append(Case(steps[-1].demand.category, asked, in_words(found), fault, picture))
        advance(len(part))
    return cases
