"""A call that draws pictures: what it asked for, completed and checked before any work, and then done in batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from showo.engine.composing import Others, check_others
from showo.engine.generate import Earlier, GenerationStep, check_options, generate_codes
from showo.engine.open_canvas import OpenCanvas
from showo.engine.options import Also, Asked, is_whole
from showo.engine.session import Session
from showo.errors import UserError
from showo.pictures import to_pixels, to_rgb
from showo.prompting import TextIds
from showo.seeds import row_seeds

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline

Finish = Callable[[int, Image.Image], Image.Image]
OUTPUT_TYPES = ("pil", "pt", "np", "codes")


class Drawing:
    """prompts: a text for each picture, in order. grid: (height, width) of each picture in codes.

    texts: ids of the prompts. steps: of each picture. seeds: one for each picture.

    Raises UserError for options that make no sense.
    """

    def __init__(self, pipe: ShowoPipeline, asked: Asked, prompts: Sequence[str], grid: tuple[int, int]) -> None:
        sampling = pipe.sampling.filled(steps=asked.steps, guidance=asked.guidance, top_k=asked.top_k)
        check_options(
            pipe.config,
            grid[0] * grid[1],
            pipe.prompting,
            steps=sampling.steps,
            guidance=sampling.guidance,
            temperature=asked.temperature,
        )
        self._pipe, self._asked, self.grid = pipe, asked, grid
        self._options: dict[str, Any] = {
            **sampling.to_dict(),
            "schedule": asked.schedule,
            "temperature": asked.temperature,
            "sampler": asked.sampler,
            "guidance_schedule": asked.guidance_schedule,
        }
        self.steps = sampling.steps
        self.texts = pipe.text_ids(prompts)
        self._negatives: list[list[int]] | None = None
        self._others: list[Others] | None = None
        if asked.also:
            self._others = _others(pipe, spread_also(asked.also, len(prompts)))
        if asked.negative_prompt is not None:
            if sampling.guidance == 0 and self._others is None:
                raise UserError("negative_prompt: guidance 0 draws without it; raise the guidance")
            self._negatives = pipe.text_ids(spread(asked.negative_prompt, len(prompts), "negative_prompt"))
        self.seeds = _seeds(asked, len(prompts))
        self._advance = lambda: None

    def parts(self) -> list[slice]:
        """The pictures of each batch."""
        size = self._asked.batch
        return [slice(first, min(first + size, len(self.texts))) for first in range(0, len(self.texts), size)]

    @contextmanager
    def bar(self, calls: int) -> Iterator[None]:
        """Shows how many steps of so many calls of `draw` are done, on a terminal."""
        if not (self._asked.progress and sys.stderr.isatty()):
            yield
            return

        from rich.console import Console  # rich takes as long to import as the weights to load

        from showo.progress import counting_bar

        with counting_bar(Console(stderr=True), transient=True) as progress:
            task = progress.add_task("drawing", total=calls * self.steps)
            self._advance = lambda: progress.advance(task)
            yield

    def draw(self, part: slice, canvas: Tensor | None = None, earlier: Earlier | None = None) -> Tensor:
        """Codes [n, N] of one batch. canvas: vocabulary ids [n, N], mask tokens where codes are wanted."""
        return self.draw_some(range(len(self.texts))[part], canvas, earlier)

    def draw_some(
        self, numbers: Sequence[int], canvas: Tensor | None = None, earlier: Earlier | Session | None = None
    ) -> Tensor:
        """`draw` of the pictures of these numbers."""

        def report(step: GenerationStep) -> None:
            self._advance()
            if self._asked.callback is not None:
                self._asked.callback(numbers[0], step)

        return generate_codes(
            self._pipe.model,
            self._pipe.prompting,
            [self.texts[number] for number in numbers],
            earlier=earlier,
            canvas=canvas,
            **self._how(numbers),
            callback=report,
        )

    def open_canvas(self, number: int, canvas: Tensor) -> OpenCanvas:
        """The picture of this number, int64 [1, N] on the model's device, to be filled in step by step."""
        return OpenCanvas(self._pipe.model, [self.texts[number]], canvas=canvas, **self._how([number]))

    @property
    def rows(self) -> int:
        """How many rows of a batch a picture takes, at most."""
        if self._others is not None:
            return 2 + max(map(len, self._others), default=0)
        return 2 if self._options["guidance"] > 0 else 1

    def beside(self, number: int) -> list[TextIds]:
        """The texts that are read in the place of a picture's own, in other rows: negative and further prompts."""
        negatives: list[TextIds] = [] if self._negatives is None else [self._negatives[number]]
        return negatives + ([] if self._others is None else [text for text, _ in self._others[number]])

    def _how(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Arguments of `generate_codes` and of `OpenCanvas` alike."""
        return {
            "grid": self.grid,
            "negatives": None if self._negatives is None else [self._negatives[number] for number in numbers],
            "also": None if self._others is None else [self._others[number] for number in numbers],
            **self._options,
            "seed": [self.seeds[number] for number in numbers],
        }

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Vocabulary ids [n, N] of RGB pictures, by batches."""
        size = self._asked.batch
        firsts = range(0, len(pictures), size)
        return torch.cat([self._pipe.encode(pictures[first : first + size], self.grid) for first in firsts])

    def output(self, codes: Tensor, output_type: str, finish: Finish | None = None) -> Any:
        """What a call gives for its codes [B, N]. finish: (number, picture) -> the picture in its place."""
        if output_type == "codes":
            return codes.view(-1, *self.grid)
        pictures = [picture for part in self.parts() for picture in self._pipe.decode(codes[part], self.grid)]
        if finish is not None:
            pictures = [finish(number, picture) for number, picture in enumerate(pictures)]
        return as_output(pictures, output_type)

    def draw_all(self, canvas: Tensor | None = None) -> Tensor:
        """Codes [B, N] of all pictures, by batches."""
        parts = self.parts()
        drawn = [torch.empty(0, self.grid[0] * self.grid[1], dtype=torch.int64, device=self._pipe.model.device)]
        with self.bar(len(parts)):
            drawn += [self.draw(part, None if canvas is None else canvas[part]) for part in parts]
        return torch.cat(drawn)


def spread(texts: str | Sequence[str], count: int, name: str) -> list[str]:
    """A text for each of `count` pictures: the one that is given, or as many. UserError for another number."""
    texts = [texts] * count if isinstance(texts, str) else as_texts(texts, name)
    if len(texts) != count:
        raise UserError(f"{name} must be one text or {count}, got {len(texts)}")
    return texts


def spread_also(also: Also | Sequence[Also], count: int) -> list[Also]:
    """The further texts of each of `count` pictures, with their weights: those that are given, or as many lists.

    Raises TypeError for what is neither, and what `check_others` raises.
    """
    lists: Any = [also] * count if all(map(_is_weighted, also)) else also
    if any(isinstance(others, str) or not all(map(_is_weighted, others)) for others in lists):
        raise TypeError(f'also must be [("a text", 0.5), ...], or one such list for each picture, got {also!r}')
    check_others(lists, count)
    return list(lists)


def _is_weighted(text: object) -> bool:
    return (
        isinstance(text, (tuple, list))
        and len(text) == 2
        and isinstance(text[0], str)
        and isinstance(text[1], (int, float))
    )


def _others(pipe: ShowoPipeline, also: Sequence[Also]) -> list[Others]:
    """The same with ids of the texts."""
    ids = iter(pipe.text_ids([text for others in also for text, _ in others]))
    return [[(next(ids), weight) for _, weight in others] for others in also]


def repeated(values: Sequence[Any], times: int) -> list[Any]:
    """Each value so many times, one after another."""
    if not is_whole(times):
        raise TypeError(f"num_images_per_prompt must be a whole number, got {times!r}")
    if times < 1:
        raise UserError(f"num_images_per_prompt must be at least 1, got {times}")
    return [value for value in values for _ in range(times)]


def paired(
    pictures: Image.Image | Sequence[Image.Image], prompts: str | Sequence[str]
) -> tuple[list[Image.Image], list[str]]:
    """Upright RGB pictures, each with its prompt; one of either goes with all of the other. UserError otherwise."""
    shown = [to_rgb(picture) for picture in as_pictures(pictures)]
    texts = as_texts(prompts)
    count = max(len(shown), len(texts))
    if not {len(shown), len(texts)} <= {1, count}:
        raise UserError(f"{len(shown)} pictures for {len(texts)} prompts")
    return shown * (count // len(shown)), texts * (count // len(texts))


def as_texts(texts: str | Sequence[str], name: str = "prompt") -> list[str]:
    """The one that is given, or as many. TypeError for what is no text."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a text, or a list of texts, got {texts!r}")
    return list(texts)


def as_pictures(pictures: Image.Image | Sequence[Image.Image], name: str = "image") -> list[Image.Image]:
    """The one that is given, or as many. TypeError for what is no picture of Pillow's."""
    if isinstance(pictures, Image.Image):
        return [pictures]
    if isinstance(pictures, Sequence) and all(isinstance(picture, Image.Image) for picture in pictures):
        return list(pictures)
    raise TypeError(f"{name} must be a picture (PIL.Image), or a list of pictures, got {pictures!r}")


def check_output(output_type: str, blend: int | None = None) -> None:
    """UserError for an output that there is not, and for pixels to be blended where none are given back."""
    if blend is not None and blend < 0:
        raise UserError(f"blend must be 0 or more pixels, got {blend}")
    if blend is not None and output_type == "codes":
        raise UserError("blend: codes have no pixels to blend; leave it out")
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def as_output(pictures: list[Image.Image], output_type: str) -> list[Image.Image] | Tensor | np.ndarray:
    """ "pil": as they are. "pt": fp32 [B, 3, H, W], "np": fp32 [B, H, W, 3], both the 8-bit pixels divided by 255."""
    if output_type == "pil":
        return pictures
    pixels = torch.stack([to_pixels(picture) for picture in pictures]).float() / 255
    return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).numpy()


def _draw_seeds(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device).tolist()


def _seeds(asked: Asked, count: int) -> list[int]:
    if isinstance(asked.generator, torch.Generator):
        return _draw_seeds(asked.generator, count)
    if asked.generator is not None:
        if len(asked.generator) != count:
            raise UserError(f"generator: {len(asked.generator)} generators for {count} pictures")
        return [seed for generator in asked.generator for seed in _draw_seeds(generator, 1)]
    row_seeds(asked.seed, count)  # a wrong number of seeds is said here
    seed = asked.seed
    return [index(value) for value in seed] if isinstance(seed, Iterable) else [index(seed) + i for i in range(count)]
