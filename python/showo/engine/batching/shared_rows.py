"""A session whose rows belong to several requests, which come and go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from showo.engine.batching.ticket import Ending, Ticket
from showo.engine.session import Session


class HasTicket(Protocol):
    ticket: Ticket


Owner = TypeVar("Owner", bound=HasTicket)


class SharedRows(Generic[Owner]):
    """Rows are copied together when somebody looks at them, however many have come and gone since then.

    owners: in the order of their rows.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._rows: dict[Owner, list[int]] = {}  # in the session that is held
        self._new: dict[Owner, Session] = {}
        self._changed = False

    @property
    def owners(self) -> list[Owner]:
        return [*self._rows, *self._new]

    def put(self, owner: Owner, session: Session) -> None:
        """All rows of a session."""
        self._new[owner] = session

    def keep(self, owner: Owner, count: int) -> None:
        """The first rows of an owner alone; with 0 the owner is gone."""
        if owner in self._new:
            session = self._new.pop(owner)
            if count > 0:
                self._new[owner] = session if count == session.rows else session.taken(range(count))
        elif count < len(self._rows[owner]):
            self._changed = True
            self._rows[owner] = self._rows[owner][:count]
            if count == 0:
                del self._rows[owner]
        if not self.owners:
            self._session = None

    def count(self) -> int:
        return sum(map(len, self._rows.values())) + sum(session.rows for session in self._new.values())

    def cache_bytes(self) -> int:
        held = self._new.values() if self._session is None else [self._session, *self._new.values()]
        return sum(session.cache_bytes for session in held)

    @property
    def session_is_old(self) -> bool:
        """Whether rows have come or gone since `session` was looked at."""
        return self._changed or bool(self._new)

    def session(self) -> Session:
        """The rows of all owners, in their order."""
        if self.session_is_old:
            parts: list[tuple[Session, Sequence[int]]] = []
            if self._session is not None:
                parts.append((self._session, [row for rows in self._rows.values() for row in rows]))
            parts += [(session, range(session.rows)) for session in self._new.values()]
            counts = {owner: len(rows) for owner, rows in self._rows.items()}
            counts |= {owner: session.rows for owner, session in self._new.items()}
            self._session = Session.joined(parts)
            self._rows, first = {}, 0
            for owner, count in counts.items():
                self._rows[owner] = list(range(first, first + count))
                first += count
            self._new, self._changed = {}, False
        assert self._session is not None
        return self._session

    def of(self, owner: Owner) -> slice:
        """Where an owner's rows are in `session`."""
        return slice(self._rows[owner][0], self._rows[owner][-1] + 1)


class Batch(ABC, Generic[Owner]):
    """Requests that share a forward pass in every step."""

    def __init__(self) -> None:
        self.rows: SharedRows[Owner] = SharedRows()

    def drop(self, owner: Owner) -> None:
        """Takes a request out, whether it is done or not."""
        self.rows.keep(owner, 0)

    @abstractmethod
    def step(self) -> Mapping[Owner, Ending]:
        """A step of every request. Gives those that end with it, which are still to be taken out."""
