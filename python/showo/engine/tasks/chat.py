"""A talk about pictures: questions and answers in turn, of which each sees all that is before it.

The row is that of training, `mmu (soi image eoi)* sot question answer eot question answer eot ...`, or for a model with
CLIP-ViT `mmu system soi features eoi question answer eot ...`. A session keeps its keys and values, so a turn computes
its own question and answer alone. The first question may be None, which asks for a caption: of one picture, or of
several, such as the key frames of a video, which then stand in one row in the order of their time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from showo.batch import Batch
from showo.dialogue import SYSTEM_PROMPT
from showo.engine.drawing import as_pictures
from showo.engine.session import Session
from showo.engine.text_pieces import TextPieces
from showo.engine.understand import MAX_NEW_TOKENS, SeenPictures, check_options, seen_length
from showo.errors import UserError
from showo.model.clip import clip_fit
from showo.pictures import fit, to_rgb
from showo.text import clean_text

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline


@dataclass(frozen=True)
class Turn:
    """question: cleaned; None where a caption was asked for. answer: what has been taken of it so far.

    finished: whether the answer came to its end. One that did not is ended before the next question is read.
    """

    question: str | None
    answer: str = ""
    finished: bool = False


class Chat:
    """One talk about these pictures, in this order; `ShowoPipeline.chat` makes it.

    size: (width, height) in pixels to which pictures are cropped and resized; None is the training size.
    seed: the first answer is drawn with it, the next ones with those that follow it.
    turns: what has been said so far.

    Raises UserError for pictures that the model has no positions for, and for other than one where it has CLIP-ViT.
    """

    def __init__(
        self,
        pipe: ShowoPipeline,
        images: Image.Image | Sequence[Image.Image] = (),
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.turns: list[Turn] = []
        self.seed = seed
        self._pipe = pipe
        self._pictures = looking(pipe, as_pictures(images, "images"), size)()
        self._session = Session(pipe.model, 1)
        self._answer: Generator[str] | None = None

    def ask(
        self,
        question: str | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> str:
        """The whole answer; arguments and errors are those of `stream`."""
        answer = self.stream(question, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        return "".join(answer)

    def stream(
        self,
        question: str | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Iterator[str]:
        """The answer, piece by piece, as it is computed. The question is read at once.

        question: None asks for a caption, which only the first turn can. temperature 0 is greedy. A warning says so
        where an answer is cut because the positions end.

        Raises UserError for an empty question, for options that make no sense, and where the model has no positions
        for the question and an answer; the talk stays as it was before the call.
        """
        check_options(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        question = None if question is None else clean_text(question)
        self._read(question)
        steps = self._session.generate_text(
            eot=self._pipe.prompting.eot,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=self.seed + len(self.turns),
        )
        self.turns.append(Turn(question))
        self._answer = self._answered(steps, max_new_tokens)
        return self._answer

    @torch.inference_mode()
    def _read(self, question: str | None) -> None:
        if question is None and self.turns:
            raise UserError("a caption is asked for in the first turn; the next ones need a question")
        if question == "":
            raise UserError("the question is empty")
        ids = self._pipe.question_ids([question])[0]
        if self._answer is not None:
            self._answer.close()  # nobody takes any more of it
            ids = ids if self.turns[-1].finished else [self._pipe.prompting.eot, *ids]
            self._check_room(len(ids))
            self._session.append_text([ids])
        else:
            row, image_ids = first_row(self._pipe, self._pictures, ids)
            self._check_room(row.input_ids.shape[1])
            self._session.append(row, image_ids)

    def _check_room(self, count: int) -> None:
        _check_room(len(self.turns) + 1, count, self._session.room(0), self._pipe.config.max_positions)

    def _answered(self, steps: Generator[list[int | None]], max_new_tokens: int) -> Generator[str]:
        number, longest = len(self.turns) - 1, min(max_new_tokens, self._session.room(0))
        pieces, turn = TextPieces(self._pipe.text_tokenizer), self.turns[number]
        with closing(steps):
            for (id_,) in steps:  # of the only row
                piece = "" if id_ is None else pieces.add(id_)
                if piece:
                    self.turns[number] = turn = replace(turn, answer=pieces.text)
                    yield piece
        piece = pieces.end()
        self.turns[number] = turn = replace(turn, answer=pieces.text, finished=len(pieces.ids) < longest)
        if piece:
            yield piece
        if not turn.finished and longest < max_new_tokens:
            positions = self._pipe.config.max_positions
            warnings.warn(f"the answer was cut: the model's {positions} positions are used up", stacklevel=2)


def first_row(pipe: ShowoPipeline, pictures: Tensor | SeenPictures, text: Sequence[int]) -> tuple[Batch, Tensor | None]:
    """The row that a talk about pictures begins with, up to an answer, and the vocabulary ids of its pictures."""
    if isinstance(pictures, SeenPictures):
        return pipe.prompting.asked_vit([text], pictures.system, pictures.features), None
    return pipe.prompting.asked([text], pictures.shape[1], [len(pictures)]), pictures


def check_turns(
    pipe: ShowoPipeline, pictures: int, questions: Sequence[str | None], size: tuple[int, int] | None
) -> None:
    """UserError for pictures, or for a question that finds no positions however short the answers before it are."""
    places, room = _check_pictures(pipe, pictures, size), pipe.config.max_positions
    for turn, ids in enumerate(pipe.question_ids(questions), start=1):
        count = len(ids)
        if turn == 1 and pipe.config.w_clip_vit:
            count = seen_length(places, pipe.text_tokenizer.encode(SYSTEM_PROMPT), ids)
        elif turn == 1:
            count = pipe.prompting.asked([ids], places, [pictures]).input_ids.shape[1]
        _check_room(turn, count, room, pipe.config.max_positions)
        room -= count + 1  # every answer ends in eot


def _check_room(turn: int, count: int, room: int, positions: int) -> None:
    if count >= room:
        raise UserError(
            f"turn {turn} of the chat takes {count} positions, and {room} of the model's "
            f"{positions} are left: begin another chat, or one with fewer pictures"
        )


def _check_pictures(pipe: ShowoPipeline, count: int, size: tuple[int, int] | None) -> int:
    """Places of each of so many pictures. UserError where they cannot be talked about, or leave no positions."""
    clip = pipe.config.w_clip_vit
    if clip and count != 1:
        raise UserError(f"this model, which has CLIP-ViT, can talk about one picture, got {count}")
    if clip and size is not None:
        raise UserError("size: this model sees all pictures in the size of its vision tower; leave it out")
    system = pipe.text_tokenizer.encode(SYSTEM_PROMPT) if clip else []
    places = pipe.tower.image_tokens if clip else math.prod(pipe.grid(size))
    length = 2 + len(system) + count * (places + 2)  # mmu system? (soi image eoi)*, and sot or a first id
    positions = pipe.config.max_positions
    if length >= positions:
        raise UserError(f"{count} pictures take {length} positions; this model has {positions}")
    return places


def as_seen(pipe: ShowoPipeline, picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """A picture as RGB, cropped and resized as the model sees it: small, and the same when that is done again."""
    if pipe.config.w_clip_vit:
        return clip_fit(to_rgb(picture), pipe.tower.side)
    return fit(to_rgb(picture), pipe.pixels(pipe.grid(size)))


def looking(
    pipe: ShowoPipeline, images: Sequence[Image.Image], size: tuple[int, int] | None
) -> Callable[[], Tensor | SeenPictures]:
    """How pictures become what the model reads: vocabulary ids [n, N], or features. UserError where they cannot.

    What is given back keeps them as the model sees them, and not as large as they were.
    """
    places = _check_pictures(pipe, len(images), size)
    images = [as_seen(pipe, image, size) for image in images]
    if pipe.config.w_clip_vit:
        return lambda: SeenPictures(pipe.see(images), pipe.text_tokenizer.encode(SYSTEM_PROMPT))
    return lambda: pipe.encode(images, pipe.grid(size)) if images else torch.empty(0, places, dtype=torch.int64)
