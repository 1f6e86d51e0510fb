"""A picture drawn on beyond its edges: a canvas of codes that grows, seen through a window of the training size.

Every step adds a band on one side. Windows that reach the band and the codes beside it go along it, each half over the
one before, and what they see masked is drawn: nothing is drawn without its neighbours in view, and nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from showo.engine.drawing import Drawing, as_output, as_texts, check_output, spread
from showo.engine.options import Asked, is_whole
from showo.engine.tasks.inpaint import blended
from showo.errors import UserError
from showo.pictures import MAX_PIXELS, fit, to_rgb

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline

DIRECTIONS = ("left", "right", "up", "down")

# Yields canvases to be filled in turn, vocabulary ids int64 [h, w] with mask tokens, is sent the ids of each without
# masks, and returns what they have become together.
Fill = Generator[Tensor, Tensor, Tensor]


def draw_in_turn(fill: Fill, draw: Callable[[int, Tensor], Tensor]) -> Tensor:
    """What `fill` returns. draw: (number of the canvas, canvas) -> ids without masks."""
    number = 0
    try:
        canvas = next(fill)
        while True:
            canvas = fill.send(draw(number, canvas))
            number += 1
    except StopIteration as end:
        return end.value


def extend(
    pipe: ShowoPipeline,
    asked: Asked,
    image: Image.Image,
    prompt: str | Sequence[str],
    directions: str | Sequence[str],
    by: int | None,
    blend: int | None,
    output_type: str,
) -> Any:
    """The output for one picture that is drawn on; arguments and errors as of `Extending`."""
    check_output(output_type, blend)
    task = Extending(pipe, asked, image, prompt, directions, by, blend)
    offset = pipe.config.vocabulary.image_offset

    def draw(number: int, window: Tensor) -> Tensor:
        return task.drawing.draw(slice(number, number + 1), window.reshape(1, -1)).view(window.shape) + offset

    with task.drawing.bar(len(task.drawing.texts)):
        grown = draw_in_turn(task.fill(), draw) - offset
    if output_type == "codes":
        return grown[None]
    (drawn,) = pipe.decode(grown.view(1, -1), task.grid)
    return as_output([task.finish(0, drawn)], output_type)


class Extending:
    """One picture, of any size: all codes of the given one stay as they are, and a band is added in every direction.

    directions: left, right, up or down, in the order of the steps. by: codes of a band; None is half of what the model
        sees.
    blend: as of `showo.engine.tasks.inpaint`; what is marked are the bands.
    asked.size: of the first picture, at least the training size, which the model sees at a time.

    grid: (height, width) in codes of the grown picture. drawing: of the windows, in the order in which they are drawn.

    Raises UserError for another direction, a band as wide as what the model sees, or more pixels than MAX_PIXELS.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        asked: Asked,
        image: Image.Image,
        prompt: str | Sequence[str],
        directions: str | Sequence[str],
        by: int | None,
        blend: int | None,
    ) -> None:
        if not isinstance(image, Image.Image):
            raise TypeError(f"image must be one picture (PIL.Image), got {image!r}")
        directions = as_texts(directions, "directions")
        self._steps = steps = Extension(pipe.grid(asked.size), pipe.grid(), directions, by)
        self.grid = steps.grids()[-1]
        width, height = pipe.pixels(self.grid)
        if width * height > MAX_PIXELS:
            raise UserError(f"a picture of {width}x{height} pixels, more than {MAX_PIXELS}: take fewer directions")
        texts = [
            text
            for text, windows in zip(spread(prompt, len(directions), "prompt"), steps.windows(), strict=True)
            for _ in range(windows)
        ]
        self.drawing = Drawing(pipe, asked, texts, steps.window)
        self._pipe, self._blend = pipe, blend
        self._first = fit(to_rgb(image), pipe.pixels(steps.grid))

    def fill(self) -> Fill:
        """The windows, one after the other, and at last the grown canvas [height, width]."""
        ids = self._pipe.encode([self._first], self._steps.grid).view(self._steps.grid)
        return self._steps.draw(ids, self._pipe.config.vocabulary.mask_id)

    def finish(self, number: int, drawn: Image.Image) -> Image.Image:
        """The picture as it is given back, of what the image tokenizer has decoded."""
        if self._blend is None:
            return drawn
        factor = self._pipe.image_config.downsampling
        top, left = (places * factor for places in self._steps.corner())
        whole, mask = Image.new("RGB", drawn.size), Image.new("L", drawn.size, 255)
        whole.paste(self._first, (left, top))
        mask.paste(0, (left, top, left + self._first.width, top + self._first.height))
        return blended(whole, drawn, mask, self._blend)


@dataclass(frozen=True)
class Extension:
    """grid, window: (height, width) in codes of the first picture, and of what the model sees. by: codes of a band."""

    grid: tuple[int, int]
    window: tuple[int, int]
    directions: Sequence[str]
    by: int | None = None

    def __post_init__(self) -> None:
        if not self.directions:
            raise UserError(f"directions: none is given; expected {', '.join(DIRECTIONS)}, one for each step")
        if self.by is not None and not is_whole(self.by):
            raise TypeError(f"by must be a whole number of codes, got {self.by!r}")
        for direction in self.directions:
            if direction not in DIRECTIONS:
                raise UserError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        (height, width), (rows, columns) = self.grid, self.window
        if height < rows or width < columns:
            raise UserError(f"a picture of {height}x{width} codes is smaller than the {rows}x{columns} the model sees")
        for direction in self.directions:
            side = self.window[_axis(direction)]
            if not 1 <= self.band(direction) < side:
                raise UserError(f"by must be 1 to {side - 1} codes, so that some of the picture is seen, got {self.by}")

    def band(self, direction: str) -> int:
        """Codes that a step adds; by default half of the window."""
        return self.window[_axis(direction)] // 2 if self.by is None else self.by

    def grids(self) -> list[tuple[int, int]]:
        """(height, width) of the canvas before the first step and after each."""
        grids = [self.grid]
        for direction in self.directions:
            height, width = grids[-1]
            more = self.band(direction)
            grids.append((height + more, width) if _axis(direction) == 0 else (height, width + more))
        return grids

    def windows(self) -> list[int]:
        """How many windows each step draws."""
        return [len(self._starts(step)) for step in range(len(self.directions))]

    def corner(self) -> tuple[int, int]:
        """Top and left of the first picture in the last canvas, in codes."""
        above, before = (
            sum(self.band(direction) for direction in self.directions if direction == name) for name in ("up", "left")
        )
        return above, before

    def corners(self, step: int) -> list[tuple[int, int]]:
        """(top, left) of a step's windows in the canvas that the step has grown, in codes."""
        direction, axis = self.directions[step], _axis(self.directions[step])
        across = 0 if direction in ("left", "up") else self.grids()[step + 1][axis] - self.window[axis]
        return [(across, start) if axis == 0 else (start, across) for start in self._starts(step)]

    def draw(self, ids: Tensor, mask_id: int) -> Fill:
        """Grows a canvas int64 [h, w], which the grown one holds unchanged."""
        for step, direction in enumerate(self.directions):
            more = self.band(direction)
            sides = {"left": (more, 0, 0, 0), "right": (0, more, 0, 0), "up": (0, 0, more, 0), "down": (0, 0, 0, more)}
            ids = F.pad(ids, sides[direction], value=mask_id)
            for top, left in self.corners(step):
                view = ids[top : top + self.window[0], left : left + self.window[1]]
                view.copy_((yield view))
        return ids

    def _starts(self, step: int) -> list[int]:
        """Where the windows of a step begin along its band."""
        along = 1 - _axis(self.directions[step])
        side, length = self.window[along], self.grids()[step][along]
        last = length - side
        count = 1 + math.ceil(last / max(1, side // 2))
        return [min(number * max(1, side // 2), last) for number in range(count)]


def _axis(direction: str) -> int:
    return 0 if direction in ("up", "down") else 1
