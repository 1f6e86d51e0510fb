"""Pictures that are drawn together, a step at a time, whatever their steps, options and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from showo.engine.batching.requests import DrawingWork
from showo.engine.batching.shared_rows import Batch
from showo.engine.batching.ticket import DrawingDone, Ending, Progress, Ticket
from showo.engine.generate import Earlier, read_texts
from showo.engine.growing import OpenImage
from showo.engine.open_canvas import GenerationStep
from showo.engine.session import Session

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline


class OpenPicture:
    """A picture that is drawn for a ticket: one canvas, or one after the other where it is extended.

    canvas: the one that is drawn on. last: the event that the request ends with, where there is nothing to draw any
    more.
    """

    def __init__(self, pipe: ShowoPipeline, ticket: Ticket, work: DrawingWork) -> None:
        self.ticket, self.work, self._pipe = ticket, work, pipe
        self.last: DrawingDone | None = None
        self._canvases, self._number = work.fill(), -1
        self._open(None)

    def _open(self, ids: Tensor | None) -> None:
        """The next canvas, where the one before has become `ids`."""
        try:
            ids = next(self._canvases) if ids is None else self._canvases.send(ids)
        except StopIteration as end:
            self._finish(end.value)
            return
        self._number += 1
        self.canvas = self.work.drawing.open_canvas(self._number, ids.reshape(1, -1).clone())

    def read(self) -> Session:
        """Rows that go on with the canvas."""
        texts, places = self.canvas.texts, self.canvas.ids.shape[1]
        none = torch.empty(0, places, dtype=torch.int64)
        told = Earlier([[text] for text in texts], [none] * len(texts))
        session = read_texts(self._pipe.model, self._pipe.prompting, told)
        session.reserve(places + 2)
        return session

    def advance(self, logits: Tensor) -> bool:
        """Does a step, and those after it that need no logits. Whether another canvas is begun, which is to be read."""
        self._show(self.canvas.advance(logits))
        while not self.canvas.done and not self.canvas.needs_logits:
            self._show(self.canvas.advance(None))
        if not self.canvas.done:
            return False
        ids = self.canvas.codes() + self._pipe.model.config.vocabulary.image_offset
        self._open(ids.view(self.work.drawing.grid))
        return self.last is None

    def _show(self, step: GenerationStep) -> None:
        grid, before = self.work.drawing.grid, self._number * step.steps
        codes, masked = step.codes.view(grid).cpu(), step.masked.view(grid).cpu()
        picture = self._pipe.decode(step.codes, grid)[0] if self.work.previews else None
        steps = len(self.work.drawing.texts) * step.steps
        self.ticket.put(Progress(before + step.step, steps, codes, masked, picture))

    def _finish(self, ids: Tensor) -> None:
        codes = ids - self._pipe.model.config.vocabulary.image_offset
        (picture,) = self._pipe.decode(codes.reshape(1, -1), self.work.grid)
        self.last = DrawingDone(picture if self.work.finish is None else self.work.finish(picture), codes.cpu())


class PictureBatch(Batch[OpenPicture]):
    """Pictures of so many places, each at a step of its own."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places = places
        self._image: OpenImage | None = None

    def add(self, picture: OpenPicture) -> None:
        """Reads what comes before the picture."""
        self.rows.put(picture, picture.read())

    def step(self) -> dict[OpenPicture, Ending]:
        for picture in self.rows.owners:
            self.rows.keep(picture, picture.canvas.rows_left)
        if self._image is None or self.rows.session_is_old:
            self._image = self.rows.session().open_image(self.places)
        pictures = self.rows.owners
        where = {picture: self.rows.of(picture) for picture in pictures}
        ids = [picture.canvas.ids.expand(where[picture].stop - where[picture].start, -1) for picture in pictures]
        logits = self._image.logits(torch.cat(ids))
        ended: dict[OpenPicture, Ending] = {}
        for picture in pictures:
            first = where[picture].start
            try:
                if picture.advance(logits[first : first + picture.canvas.rows]):
                    self.drop(picture)
                    self.add(picture)
            except Exception as error:
                ended[picture] = error
            if picture.last is not None:
                ended[picture] = picture.last
        return ended
