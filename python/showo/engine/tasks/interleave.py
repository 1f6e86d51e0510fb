"""Stories and how-tos: text, picture, text, picture, and so on, each picture drawn after all that is before it.

The rows are those of the format lvg, `t2i sot text eot soi image eoi (sot text eot soi image eoi)*`, with its mask. A
session keeps the keys and values of texts and pictures: a picture is drawn once and then read once. Guidance contrasts
with the same row whose last text is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from showo.engine.drawing import Drawing, as_pictures, as_texts, check_output
from showo.engine.options import Asked
from showo.engine.session import Session
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting, TextIds

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline


# Codes [n, N] of pictures, named by (story, number of its picture), that continue the n rows of a session.
Draw = Callable[[Sequence[tuple[int, int]], Session], Tensor]


def draw_stories(
    model: Showo,
    prompting: Prompting,
    texts: Sequence[Sequence[TextIds]],
    given: Sequence[Tensor],
    draw: Draw,
) -> list[Tensor]:
    """Pictures of every story as vocabulary ids [M, N], one for each of its texts, those that are given included.

    given: of every story, ids [n, N] of its first n pictures, which may be none or all.
    """
    pictures = [list(images) for images in given]
    rows, session = list(range(len(texts))), Session(model, len(texts))
    for number in range(max(map(len, texts), default=0)):
        wanted = [at for at, row in enumerate(rows) if len(pictures[row]) == number]
        if wanted:
            drawn = draw([(rows[at], number) for at in wanted], session.taken(wanted))
            for at, codes in zip(wanted, drawn, strict=True):
                pictures[rows[at]].append(codes + model.config.vocabulary.image_offset)
        going_on = [at for at, row in enumerate(rows) if len(texts[row]) > number + 1]
        if not going_on:
            break
        rows, session = [rows[at] for at in going_on], session.taken(going_on)
        session.append(prompting.told([texts[row][number] for row in rows], [number == 0] * len(rows)))
        session.append_image(torch.stack([pictures[row][number] for row in rows]))
    return [torch.stack(images) for images in pictures]


def check_story(prompting: Prompting, texts: Sequence[TextIds], given: int, grid: tuple[int, int], name: str) -> None:
    """UserError, which begins with `name`, for a story that cannot be told."""
    if not texts:
        raise UserError(f"{name} has no text")
    if given > len(texts):
        raise UserError(f"{name} has {given} pictures for {len(texts)} texts; each picture follows its text")
    later = sum(len(prompting.t2i_text(text)) - 1 for text in texts[1:])
    length = prompting.max_text_len + 1 + later + len(texts) * (grid[0] * grid[1] + 2)
    positions = prompting.max_positions
    if positions is not None and length > positions:
        raise UserError(f"{name}: {len(texts)} texts and pictures take {length} positions; this model has {positions}")


def _as_many(stories: Any, given: Any) -> tuple[list[list[str]], list[list[Image.Image]]]:
    """Texts and given pictures of every story; the texts of a single one may be given as they are."""
    if stories and all(isinstance(text, str) for text in stories):
        stories, given = [stories], None if given is None else [given]
    told = [as_texts(story, "stories") for story in stories]
    return told, [[] for _ in told] if given is None else [as_pictures(images, "given") for images in given]


def interleave(
    pipe: ShowoPipeline,
    asked: Asked,
    stories: Sequence[str] | Sequence[Sequence[str]],
    given: Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None,
    output_type: str,
) -> list[Any]:
    """Of each story the output for its pictures, given ones as the model reads them.

    Pictures are numbered through all stories, given ones too, and picture i is drawn with seed `seed + i`; `batch` is
    the number of stories at a time.

    Raises UserError for a story without texts, with more pictures than texts, or too long for the model.
    """
    check_output(output_type)
    if isinstance(stories, str):
        raise TypeError(f'stories must be texts, such as ["a red star", "paint the star blue"], got {stories!r}')
    stories, shown = _as_many(stories, given)
    if len(shown) != len(stories):
        raise UserError(f"given pictures of {len(shown)} stories for {len(stories)} stories")
    grid = pipe.grid(asked.size)
    drawing = Drawing(pipe, asked, [text for story in stories for text in story], grid)
    firsts = [0, *accumulate(map(len, stories))]
    texts = [drawing.texts[first:end] for first, end in pairwise(firsts)]
    for number, (story, images) in enumerate(zip(texts, shown)):
        check_story(pipe.prompting, story, len(images), grid, f"story {number}")
        for at in range(len(images), len(story)):
            for text in drawing.beside(firsts[number] + at):
                check_story(pipe.prompting, [*story[:at], text], 0, grid, f"story {number}")
    if not stories:
        return []
    told: list[Tensor] = []
    offset, none = pipe.config.vocabulary.image_offset, torch.empty(0, grid[0] * grid[1], dtype=torch.int64)
    batches = [range(len(stories))[first : first + asked.batch] for first in range(0, len(stories), asked.batch)]
    with drawing.bar(sum(max(len(texts[row]) for row in rows) for rows in batches)):
        for rows in batches:

            def draw(pictures: Sequence[tuple[int, int]], session: Session, rows: range = rows) -> Tensor:
                return drawing.draw_some([firsts[rows[story]] + number for story, number in pictures], earlier=session)

            told += draw_stories(
                pipe.model,
                pipe.prompting,
                [texts[row] for row in rows],
                [drawing.encode(shown[row]) if shown[row] else none for row in rows],
                draw,
            )
    output = drawing.output(torch.cat(told) - offset, output_type)
    return [output[first:end] for first, end in pairwise(firsts)]
