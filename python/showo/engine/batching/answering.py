"""Answers that grow together, an id at a time, whatever their lengths and options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from showo.engine.batching.requests import AnsweringWork
from showo.engine.batching.shared_rows import Batch
from showo.engine.batching.ticket import AnswerDone, Ending, Piece, Ticket
from showo.engine.growing import GrowingText, all_finite, check_finite
from showo.engine.session import Session
from showo.engine.tasks.chat import first_row
from showo.engine.text_pieces import TextPieces
from showo.model.linear import SKINNY_ROWS
from showo.seeds import row_seeds
from showo_ext import sample_tokens

if TYPE_CHECKING:
    from showo.engine.pipeline import ShowoPipeline


class OpenAnswer:
    """An answer that grows for a ticket.

    unread: its last id, which the model has not read yet. last: the event that it ends with, once it has.
    """

    def __init__(self, pipe: ShowoPipeline, ticket: Ticket, work: AnsweringWork) -> None:
        self.ticket, self.work, self._pipe = ticket, work, pipe
        self.unread = -1
        self.last: AnswerDone | None = None
        self.seed = row_seeds(work.request.seed, 1)
        self._pieces = TextPieces(pipe.text_tokenizer)

    def read(self) -> Session:
        """The row that goes on with the answer."""
        session = Session(self._pipe.model, 1)
        session.append(*first_row(self._pipe, self.work.look(), self.work.text))
        session.reserve(self.work.most)
        return session

    @property
    def drawn(self) -> int:
        """Ids so far."""
        return len(self._pieces.ids)

    @property
    def options(self) -> tuple[float, int, float, int]:
        """What answers must agree in to be sampled by one call; greedy ones in nothing else."""
        request = self.work.request
        if request.temperature == 0:
            return 0.0, 0, 1.0, 0
        return request.temperature, request.top_k, request.top_p, self.drawn

    def add(self, id_: int) -> None:
        """The next id."""
        finished = id_ == self._pipe.prompting.eot
        if not finished:
            self.unread = id_
            self._show(self._pieces.add(id_))
        if finished or self.drawn == self.work.most:
            self._show(self._pieces.end())
            self.last = AnswerDone(self._pieces.text, finished, self.work.length, self.drawn + finished)

    def _show(self, text: str) -> None:
        if text:
            self.ticket.put(Piece(text))


class AnswerBatch(Batch[OpenAnswer]):
    """At most SKINNY_ROWS answers, which get an id each in every step."""

    def __init__(self) -> None:
        super().__init__()
        self._open: tuple[Session, GrowingText] | None = None

    def add(self, answer: OpenAnswer) -> Ending | None:
        """Reads what comes before the answer, and draws its first id."""
        session = answer.read()
        ended = _draw([answer], session.open_text().logits())
        if not ended:
            self.rows.put(answer, session)
        return ended.get(answer)

    @property
    def full(self) -> bool:
        return self.rows.count() == SKINNY_ROWS

    def step(self) -> dict[OpenAnswer, Ending]:
        text = self._growing()
        answers = self.rows.owners
        text.give(torch.tensor([answer.unread for answer in answers]))
        text.read()
        return _draw(answers, text.logits())

    def _growing(self) -> GrowingText:
        """The text of all answers, in the order of their rows."""
        if self._open is not None:
            session, text = self._open
            if not self.rows.session_is_old:
                return text
            session.keep_text(text)
        session = self.rows.session()
        self._open = session, session.open_text()
        return self._open[1]


def _draw(answers: Sequence[OpenAnswer], logits: Tensor) -> dict[OpenAnswer, Ending]:
    """Draws an id for each answer, of logits [B, V]. Those that ended, with how they did."""
    alike: dict[tuple[float, int, float, int], list[int]] = {}
    for row, answer in enumerate(answers):
        alike.setdefault(answer.options, []).append(row)
    ids = torch.empty(len(answers), dtype=torch.int64, device=logits.device)
    for (temperature, top_k, top_p, step), rows in alike.items():
        seeds = torch.cat([answers[row].seed for row in rows]).to(logits.device)
        where = torch.tensor(rows, device=logits.device)
        ids[where], _ = sample_tokens(
            logits[where], temperature=temperature, top_k=top_k, top_p=top_p, seed=seeds, step=step
        )
    ended: dict[OpenAnswer, Ending] = {}
    for answer, id_, finite in zip(answers, ids.tolist(), all_finite(logits, 1).cpu(), strict=True):
        try:
            check_finite(finite)
            answer.add(id_)
        except Exception as error:
            ended[answer] = error
        if answer.last is not None:
            ended[answer] = answer.last
    return ended
