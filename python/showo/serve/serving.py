"""What all requests of a server share, and what each of them holds of it while it is being answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from showo.engine.batching import Engine, Request, Ticket
from showo.serve.errors import ApiError, busy
from showo.serve.limits import Limits

VISIT = "showo.visit"  # the key of an ASGI scope under which the request's Visit lies
Result = TypeVar("Result")


class Serving:
    """engine: is closed by whoever made it. name: what clients call the model. key: None lets everybody in.

    active: requests that are being answered. stopping: whether all others are refused.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits, key: str | None) -> None:
        self.engine, self.name, self.limits, self.key = engine, name, limits, key
        self.active, self.stopping = 0, False
        self._held, self._lock = 0, threading.Lock()
        # Two threads: so many pictures at most are being decoded and resized at a time, whatever comes in.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="showo serve")

    def hold(self, count: int) -> None:
        """Counts bytes of requests; ApiError where they become too many. A negative number gives them back."""
        with self._lock:
            if count > 0 and self._held + count > self.limits.held_bytes:
                raise busy("the server holds as many bytes of requests as it may", "too_many_bytes")
            self._held += count

    def check_model(self, model: str | None) -> None:
        """ApiError for another model than there is; None is the one that there is."""
        if model is not None and model != self.name:
            message = f"The model {model[:100]!r} does not exist; this server has {self.name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Does something in a thread."""
        return self._threads.submit(work)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class Visit:
    """One request of a client: `end` gives back what it holds, however it came to its end."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._tickets: list[Ticket] = []
        self._bytes = 0
        serving.active += 1

    def hold(self, count: int) -> None:
        self.serving.hold(count)
        self._bytes += count

    async def submit(self, requests: Callable[[], Sequence[Request]]) -> list[Ticket]:
        """Tickets for all of these requests, which are made in a thread, or for none; raises what makes them fail."""
        future = self.serving.start(lambda: self._submit_all(requests()))
        try:
            tickets = await asyncio.wrap_future(future)
        except asyncio.CancelledError:  # the thread may be at it already, and nobody will read the tickets
            future.add_done_callback(_cancel_all)
            raise
        self._tickets += tickets
        return tickets

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self.serving.start(work))

    def end(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()  # nothing happens to those that are over
        self.serving.hold(-self._bytes)
        self.serving.active -= 1

    def _submit_all(self, requests: Sequence[Request]) -> list[Ticket]:
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.serving.engine.submit(request))
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return tickets


def _cancel_all(future: Future[list[Ticket]]) -> None:
    if not future.cancelled() and future.exception() is None:
        for ticket in future.result():
            ticket.cancel()


def _of_request(connection: HTTPConnection) -> Visit:
    return connection.scope[VISIT]


# The type of an endpoint's argument that FastAPI fills in.
ThisVisit = Annotated[Visit, Depends(_of_request)]
