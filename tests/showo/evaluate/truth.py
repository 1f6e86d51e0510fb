"""Stand-ins for a trained model: they draw and say what is true, except where a test has them err."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from showo.data.world.captions import enumerated, noun
from showo.data.world.draw import draw_scene
from showo.data.world.objects import APART, COLOURS, EMOJI, LATTICE, Object
from showo.data.world.scene import Demand, Scene, Wanted
from showo.data.world.steps import Step
from showo.data.world.world import World
from showo.engine.pipeline import ShowoPipeline, Story
from showo.evaluate.world.answering import questions
from showo.evaluate.world.drawing import read_prompts
from showo.evaluate.world.judge import as_scene, find_objects
from showo.evaluate.world.plan import COLUMNS
from showo.evaluate.world.stepping import sequences
from showo.model.image_tokenizer import ImageTokenizer
from showo.seeds import seeded_random

Change = Callable[[Scene], Scene]


class Keeper(ImageTokenizer):
    """Its codes are the numbers of the pictures that it was given last; `change` alters what comes back."""

    def __init__(self, like: ImageTokenizer, change: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        super().__init__(like.config)
        self.change = change

    def encode(self, images: Tensor) -> Tensor:
        self.seen = images
        return torch.arange(len(images))[:, None]

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        assert (height, width) == (8, 8)
        return self.change(self.seen[codes[:, 0]])


def touch(one: Object, other: Object) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) < APART


def satisfying(demand: Demand) -> Scene:
    """A scene that is as demanded."""
    generator = seeded_random(0)
    while True:
        things: list[Object] = []
        for wanted in [each for each in demand.wanted for _ in range(each.count)]:
            colour = None if wanted.shape in EMOJI else wanted.colour or generator.choice(list(COLOURS))
            spots = [Object(wanted.shape, colour, x, y) for x in LATTICE for y in LATTICE]
            spots = [spot for spot in spots if wanted.fits(spot) and not any(touch(spot, thing) for thing in things)]
            things += generator.sample(spots, min(1, len(spots)))
        if demand.is_met_by(Scene(tuple(things))):
            return Scene(tuple(things))


def told(story: Story) -> tuple[tuple[str, bytes], ...]:
    return tuple((text, picture.tobytes()) for text, picture in story)


class Truth(ShowoPipeline):
    """draw: what to do to the scene of every prompt. answer: what to make of the true answer to a question."""

    def __init__(
        self,
        like: ShowoPipeline,
        world: World,
        folder: Path,
        *,
        draw: Callable[[Demand, Scene], Scene] = lambda demand, scene: scene,
        answer: Callable[[str, str], str] = lambda kind, answer: answer,
        describe: Callable[[Scene], Scene] = lambda scene: scene,
        decode: Callable[[Tensor], Tensor] = lambda images: images,
        step: Callable[[Step], Scene] = lambda step: step.scene,
    ) -> None:
        super().__init__(like.model, Keeper(like.image_tokenizer, decode), like.text_tokenizer)
        self.scenes = {
            prompt.text: draw(prompt.demand, satisfying(prompt.demand))
            for column in COLUMNS
            for prompt in read_prompts(folder, column)
        }
        self.answers = {
            (draw_scene(scene).tobytes(), question.text): answer(question.kind, question.answer)
            for split in COLUMNS.values()
            for scene, question in questions(world, split, 60)
        }
        self.steps = {
            (told([(step.caption, draw_scene(step.scene)) for step in before]), last.caption): step(last)
            for *before, last in sequences(world, 60)
        }
        self.change = describe

    def generate(
        self, prompts: Sequence[str], *, earlier: Sequence[Story] | None = None, **options: Any
    ) -> list[Image.Image]:
        if earlier is None:
            return [draw_scene(self.scenes[prompt]) for prompt in prompts]
        return [draw_scene(self.steps[told(story), prompt]) for story, prompt in zip(earlier, prompts)]

    def describe(
        self, images: Sequence[Image.Image], questions: Sequence[str | None] | str | None = None, **options: Any
    ) -> list[str]:
        if questions is not None:
            return [f" {self.answers[image.tobytes(), str(asked)].upper()}" for image, asked in zip(images, questions)]
        found = [as_scene(find_objects(image)) for image in images]
        return [self._words(self.change(scene)) for scene in found if scene is not None]

    @staticmethod
    def _words(scene: Scene) -> str:
        return "we see " + enumerated([noun(Wanted(thing.shape, thing.colour)) for thing in scene.objects])
