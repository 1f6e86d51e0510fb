"""All parts of the evaluation, read and checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from showo.data.world.objects import SIDE
from showo.data.world.steps import Step
from showo.data.world.world import World
from showo.engine.generate import check_options
from showo.engine.pipeline import ShowoPipeline
from showo.errors import UserError
from showo.evaluate.world.answering import answer_questions, describe_scenes, questions, scenes
from showo.evaluate.world.case import Advance, Case
from showo.evaluate.world.ceiling import reconstruct_scenes
from showo.evaluate.world.drawing import draw_prompts, read_prompts
from showo.evaluate.world.settings import Settings
from showo.evaluate.world.stepping import continue_sequences, sequences

COLUMNS = {"seen": "val", "held-out": "held-out"}  # of every table; and the split of the world that each is drawn from


@dataclass(frozen=True)
class Task:
    """One part of the evaluation in one column: how many cases it has, and what makes them."""

    part: str
    column: str
    count: int
    run: Callable[[Advance], list[Case]]


def plan(pipe: ShowoPipeline, folder: Path, settings: Settings) -> list[Task]:
    """All there is to do. Raises UserError where there is no world, or none that fits the model."""
    world = World.load(folder)
    side = pipe.grid()[0] * pipe.image_config.downsampling
    if side != SIDE:
        raise UserError(f"the model draws {side}x{side} pixels, pictures of the world have {SIDE}x{SIDE}")
    places = pipe.grid()[0] * pipe.grid()[1]
    for guidance in (settings.guidance, settings.step_guidance):
        check_options(pipe.config, places, pipe.prompting, steps=settings.steps, guidance=guidance, temperature=1.0)
    count, batch = settings.count, settings.batch
    tasks = []
    for column, split in COLUMNS.items():
        prompts = read_prompts(folder, column)[:count]
        check_room(pipe, [prompt.text for prompt in prompts])
        asked, shown = questions(world, split, count), scenes(world, split, count)
        pipe.check_questions([None, *(question.text for _, question in asked)])
        tasks += [
            Task("text to image", column, len(prompts), partial(draw_prompts, pipe, prompts, settings)),
            Task("questions", column, len(asked), partial(answer_questions, pipe, asked, batch)),
            Task("descriptions", column, len(shown), partial(describe_scenes, pipe, shown, batch)),
            Task("tokenizer", column, len(shown), partial(reconstruct_scenes, pipe.image_tokenizer, shown, batch)),
        ]
    told = sequences(world, count)
    check_sequences(pipe, told)
    tasks.append(Task("steps", "seen", len(told), partial(continue_sequences, pipe, told, settings)))
    return tasks


def check_room(pipe: ShowoPipeline, texts: Sequence[str]) -> None:
    """UserError for a text that the model would cut."""
    for text, ids in zip(texts, pipe.text_tokenizer.encode_batch(list(texts))):
        if pipe.prompting.is_cut(ids):
            raise UserError(f"the model takes texts of {pipe.room} tokens, {text!r} has {len(ids)}")


def check_sequences(pipe: ShowoPipeline, told: Sequence[tuple[Step, ...]]) -> None:
    """UserError for a sequence that has no room in the model."""
    check_room(pipe, [step.caption for steps in told for step in steps])
    blank = torch.full((pipe.config.num_vq_tokens,), pipe.config.vocabulary.mask_id)
    texts = [pipe.text_tokenizer.encode_batch([step.caption for step in steps]) for steps in told]
    pipe.prompting.lvg(texts, [blank.expand(len(steps), -1) for steps in told])
