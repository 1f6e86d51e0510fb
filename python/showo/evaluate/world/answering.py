"""Image to text: questions with exact answers, and descriptions that name the right objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from showo.data.world.captions import mentions
from showo.data.world.draw import draw_scene
from showo.data.world.questions import Question, make_interview
from showo.data.world.sampling import draw_example
from showo.data.world.scene import Demand, Scene
from showo.data.world.world import Kind, World
from showo.engine.pipeline import ShowoPipeline
from showo.evaluate.world.case import Advance, Case
from showo.evaluate.world.drawing import find_fault, in_words, objects_of
from showo.pieces import pieces
from showo.text import clean_text

MAX_NEW_TOKENS = 48  # nothing that the world says is longer


def scenes(world: World, split: str, count: int) -> list[Scene]:
    """The first scenes of scenes/SPLIT-*.tar, at most `count`."""
    numbers = range(min(count, world.count(Kind.SCENE, split)))
    generators = (world.generator(Kind.SCENE, split, number) for number in numbers)
    return [draw_example(generator, world.holdout, split, emoji=world.emoji).scene for generator in generators]


def questions(world: World, split: str, count: int) -> list[tuple[Scene, Question]]:
    """The first questions of questions/SPLIT.json, at most `count`, each with the scene that it is about."""

    def all_of_them() -> Iterator[tuple[Scene, Question]]:
        for number in range(world.count(Kind.QUESTION, split)):
            interview = make_interview(world, split, world.generator(Kind.QUESTION, split, number))
            yield from ((interview.scene, question) for question in interview.questions)

    return list(itertools.islice(all_of_them(), count))


def answer_questions(
    pipe: ShowoPipeline, asked: Sequence[tuple[Scene, Question]], batch: int, advance: Advance
) -> list[Case]:
    """An answer to each question, asked alone; right is what equals the true answer but for case and outer space."""
    cases = []
    for part in pieces(asked, batch):
        pictures = [draw_scene(scene) for scene, _ in part]
        words = [question.text for _, question in part]
        answers = pipe.describe(pictures, words, max_new_tokens=MAX_NEW_TOKENS, batch=batch)
        for (_, question), picture, answer in zip(part, pictures, answers):
            fault = None if clean_text(answer).lower() == question.answer else f"not {question.answer}"
            cases.append(Case(question.kind, question.text, answer, fault, picture))
        advance(len(part))
    return cases


def describe_scenes(pipe: ShowoPipeline, shown: Sequence[Scene], batch: int, advance: Advance) -> list[Case]:
    """A caption for each scene; right is one that mentions all objects and no others, with no wrong colour."""
    cases = []
    for part in pieces(shown, batch):
        pictures = [draw_scene(scene) for scene in part]
        texts = pipe.describe(pictures, max_new_tokens=MAX_NEW_TOKENS, batch=batch)
        for scene, picture, text in zip(part, pictures, texts):
            fault = find_fault(Demand("full", tuple(mentions(text))), scene)
            cases.append(Case(objects_of(scene), in_words(scene), text, fault, picture))
        advance(len(part))
    return cases
