"""What can be asked of the engine. A request is checked where it is handed in, before any work, and its errors are
raised there: UserError and TypeError, as by the call of `ShowoPipeline` that does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from showo.dialogue import SYSTEM_PROMPT
from showo.engine.drawing import Drawing, spread_also
from showo.engine.options import Asked, Options
from showo.engine.tasks.chat import looking
from showo.engine.tasks.extend import Extending, Fill
from showo.engine.tasks.inpaint import Box, Inpainting
from showo.engine.tasks.vary import Variation
from showo.engine.understand import MAX_NEW_TOKENS, SeenPictures, check_length, check_options, seen_length
from showo.errors import UserError
from showo.text import clean_text

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline

MAX_CHARACTERS = 20_000  # of a text: one much too long is refused without being turned into ids
_NOT_FOR_ONE = ("generator", "batch", "callback", "callback_on_step_end", "progress")


@dataclass(frozen=True)
class Draw:
    """One picture of a prompt, as of `ShowoPipeline.generate`.

    options: of `showo.engine.options.Options` those that concern one picture: one seed, one negative prompt.
    previews: whether every step shows the picture as it is then (`Progress.picture`), which takes time to decode.
    """

    prompt: str
    options: Options = field(default_factory=Options)
    previews: bool = False

    def prepared(self, pipe: ShowoPipeline) -> DrawingWork:
        """Raises what is wrong with the request."""
        drawing = Drawing(pipe, self._asked(pipe), [self._prompt(pipe)], pipe.grid(self._asked(pipe).size))
        shape = (1, drawing.grid[0] * drawing.grid[1])
        mask_id, device = pipe.model.config.vocabulary.mask_id, pipe.model.device
        canvas = torch.full(shape, mask_id, dtype=torch.int64, device=device)
        return DrawingWork(drawing, lambda: _whole(canvas, drawing.grid), None, drawing.grid, self.previews)

    def _asked(self, pipe: ShowoPipeline) -> Asked:
        for name in _NOT_FOR_ONE:
            if name in self.options:
                raise UserError(f"{name}: not an option of a request for one picture")
        asked = Asked.of(self.options, pipe)
        if not isinstance(asked.seed, int):
            raise UserError(f"seed must be one integer, got {asked.seed!r}")
        if asked.negative_prompt is not None:
            _check_prompt(pipe, "negative_prompt", asked.negative_prompt)
        for text, _ in spread_also(asked.also, 1)[0] if asked.also else ():
            _check_prompt(pipe, "also", text)
        return asked

    def _prompt(self, pipe: ShowoPipeline) -> str:
        _check_prompt(pipe, "prompt", self.prompt)
        return self.prompt


@dataclass(frozen=True, kw_only=True)
class Inpaint(Draw):
    """A picture drawn anew where a mask marks it, as of `ShowoPipeline.inpaint`."""

    picture: Image.Image
    mask: Image.Image | Box
    blend: int | None = None

    def prepared(self, pipe: ShowoPipeline) -> DrawingWork:
        if self.blend is not None and self.blend < 0:
            raise UserError(f"blend must be 0 or more pixels, got {self.blend}")
        task = Inpainting(pipe, self._asked(pipe), self.picture, self._prompt(pipe), self.mask, self.blend)
        grid = task.drawing.grid
        finish = lambda drawn: task.finish(0, drawn)  # noqa: E731
        return DrawingWork(task.drawing, lambda: _whole(task.canvas(), grid), finish, grid, self.previews)


@dataclass(frozen=True, kw_only=True)
class Vary(Draw):
    """A picture near another one, or between two, as of `ShowoPipeline.vary`."""

    picture: Image.Image
    other: Image.Image | None = None
    share: float = 0.5

    def prepared(self, pipe: ShowoPipeline) -> DrawingWork:
        task = Variation(pipe, self._asked(pipe), self.picture, self._prompt(pipe), self.other, self.share)
        grid = task.drawing.grid
        return DrawingWork(task.drawing, lambda: _whole(task.canvas(), grid), None, grid, self.previews)


@dataclass(frozen=True, kw_only=True)
class Extend(Draw):
    """A picture drawn on beyond its edges, as of `ShowoPipeline.extend`.

    prompts: one for each direction; None is `prompt` for all.
    """

    picture: Image.Image
    directions: Sequence[str]
    prompts: Sequence[str] | None = None
    by: int | None = None
    blend: int | None = None

    def prepared(self, pipe: ShowoPipeline) -> DrawingWork:
        if self.blend is not None and self.blend < 0:
            raise UserError(f"blend must be 0 or more pixels, got {self.blend}")
        for prompt in self.prompts or ():
            _check_prompt(pipe, "prompts", prompt)
        prompts = self._prompt(pipe) if self.prompts is None else self.prompts
        task = Extending(pipe, self._asked(pipe), self.picture, prompts, self.directions, self.by, self.blend)
        finish = lambda drawn: task.finish(0, drawn)  # noqa: E731
        return DrawingWork(task.drawing, task.fill, finish, task.grid, self.previews)


@dataclass(frozen=True)
class Answer:
    """Text about pictures, as of `ShowoPipeline.describe` and, with earlier turns, of `ShowoPipeline.chat`.

    pictures: any number that the model has positions for, also none; exactly one where it has CLIP-ViT.
    question: None asks for a caption, which only the first turn can.
    earlier: the questions and answers before it, in order. Answers become ids anew, as in training.
    """

    pictures: Sequence[Image.Image]
    question: str | None = None
    earlier: Sequence[tuple[str | None, str]] = ()
    size: tuple[int, int] | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def prepared(self, pipe: ShowoPipeline) -> AnsweringWork:
        check_options(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        look = looking(pipe, self.pictures, self.size)
        text = self._text(pipe)
        length = self._length(pipe, text)
        check_length(pipe.config, length)
        room = pipe.model.config.max_positions - length
        return AnsweringWork(replace(self, pictures=()), look, text, length, min(self.max_new_tokens, room))

    def _text(self, pipe: ShowoPipeline) -> list[int]:
        """Ids of all turns, up to the answer that is wanted."""
        ids: list[int] = []
        for number, (question, answer) in enumerate([*self.earlier, (self.question, None)]):
            if question is None and number > 0:
                raise UserError("a caption is asked for in the first turn; the next ones need a question")
            for text in (question, answer):
                _check_characters("a turn", text or "")
            if question is not None and not clean_text(question):
                raise UserError("the question is empty")
            ids += pipe.question_ids([question])[0]
            if answer is not None:
                ids += [*pipe.text_tokenizer.encode(" " + answer.strip()), pipe.prompting.eot]
        return ids

    def _length(self, pipe: ShowoPipeline, text: Sequence[int]) -> int:
        if pipe.model.config.w_clip_vit:
            return seen_length(pipe.tower.image_tokens, pipe.text_tokenizer.encode(SYSTEM_PROMPT), text)
        grid = pipe.grid(self.size)
        return 1 + len(self.pictures) * (grid[0] * grid[1] + 2) + len(pipe.prompting.frame(text))


Request = Draw | Answer


@dataclass(frozen=True)
class DrawingWork:
    """A picture to be drawn, all of it checked but for the number of its steps, which is checked here.

    drawing: of the canvases that `fill` gives, in their order. finish: what the decoded picture becomes; None is
    itself. grid: (height, width) of the whole picture in codes.
    """

    drawing: Drawing
    fill: Callable[[], Fill]
    finish: Callable[[Image.Image], Image.Image] | None
    grid: tuple[int, int]
    previews: bool

    @property
    def rows(self) -> int:
        """How many rows of a batch it takes, at most."""
        return self.drawing.rows


@dataclass(frozen=True)
class AnsweringWork:
    """An answer to be given, all of it checked.

    request: without its pictures, which may be large. look: encodes these. text: ids of what the answer follows.
    length: places of the row before the answer. most: ids that the answer may have.
    """

    request: Answer
    look: Callable[[], Tensor | SeenPictures]
    text: Sequence[int]
    length: int
    most: int
    rows: int = 1


def _whole(canvas: Tensor, grid: tuple[int, int]) -> Fill:
    """One canvas [1, N] and no other."""
    return (yield canvas.view(grid))


def _check_characters(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name}: a text must be a str, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{name} has {len(text)} characters, at most {MAX_CHARACTERS} are taken")


def _check_prompt(pipe: ShowoPipeline, name: str, prompt: object) -> None:
    """UserError for a prompt that would be cut."""
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be one text, got {type(prompt).__name__}")
    _check_characters(name, prompt)
    ids = pipe.text_tokenizer.encode(clean_text(prompt))
    if pipe.prompting.is_cut(ids):
        raise UserError(f"{name} has {len(ids)} tokens, this model reads {pipe.room}: {prompt[:60]!r}")
