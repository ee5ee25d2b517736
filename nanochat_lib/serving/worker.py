# Generated from chapters/98_answers.py by `course build`; edit that file.
"""The thread that owns the engine: requests in, tokens out."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "QueueFull",
    "Draining",
    "NoWorker",
    "Arrival",
    "Ticket",
    "Answering",
    "Worker",
    "arrival",
    "post",
    "put_all",
]


class QueueFull(Exception):
    """Too many requests wait."""


class Draining(Exception):
    """No new requests: the server is about to stop."""


class NoWorker(Exception):
    """Nobody is there to answer."""


@dataclass(frozen=True)
class Arrival:
    """Say what a step brought to one of a caller's requests."""

    index: int
    token: int | None = (
        None  # None when the reply has ended, or when a tool or a stop gave no token
    )
    alternatives: list[tuple[int, float]] | None = None
    reason: str | None = None  # why the reply has ended
    error: str | None = None


@dataclass(eq=False)
class Ticket:
    """Connect one request with the caller who waits for it."""

    request: Request
    index: int
    queue: asyncio.Queue
    loop: asyncio.AbstractEventLoop
    row: Row | None = None
    left: bool = field(default=False)
    n_shared: int = 0  # tokens of the prompt that had been read for somebody else


@runtime_checkable
class Answering(Protocol):
    """Say what a server asks of those who answer: a worker does, and so does a pool of them."""

    max_waiting: int
    draining: bool
    tokenizer: Tokenizer
    limit: int  # tokens of the context
    max_rows: int

    @property
    def waiting(self) -> int:
        """Count the requests that have no row yet."""

    @property
    def idle(self) -> bool:
        """Say whether nobody waits for anything."""

    @property
    def n_rows(self) -> int:
        """Count the replies in the making."""

    def submit(self, requests: list[Request], queue: asyncio.Queue) -> list[Ticket]:
        """Take some requests of one caller, all or none."""

    def cancel(self, tickets: list[Ticket]) -> None:
        """Let requests go."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """End soon."""

    def is_alive(self) -> bool:
        """Say whether requests would be answered."""


class Worker(threading.Thread):
    """Step the engine while there is work."""

    def __init__(self, engine: Engine, max_waiting: int = 64) -> None:
        """Keep the engine; nobody else may touch it from now on."""
        super().__init__(daemon=True, name="engine")
        self.engine, self.max_waiting = engine, max_waiting
        self.tokenizer, self.max_rows = engine.tokenizer, engine.max_rows
        self.limit = engine.model.config.sequence_len
        self.draining = self.stopping = False
        self.tickets: dict[int, Ticket] = {}  # by the identity of the row
        self.inbox: deque[Ticket] = deque()
        self.leaving: deque[Ticket] = deque()
        self.condition = threading.Condition()

    @property
    def waiting(self) -> int:
        """Count the requests that have no row yet."""
        return len(self.inbox) + len(self.engine.waiting)

    @property
    def idle(self) -> bool:
        """Say whether nobody waits for anything."""
        return not self.inbox and not self.tickets

    @property
    def n_rows(self) -> int:
        """Count the replies in the making."""
        return len(self.tickets)

    def submit(self, requests: list[Request], queue: asyncio.Queue) -> list[Ticket]:
        """Take some requests of one caller, all or none; what arrives for them goes into the queue.

        Raises:
            QueueFull: too many wait already.
            Draining: the server is about to stop.
        """
        loop = asyncio.get_running_loop()
        tickets = [Ticket(request, i, queue, loop) for i, request in enumerate(requests)]
        with self.condition:
            if self.draining:
                raise Draining
            if self.waiting and self.waiting + len(tickets) > self.max_waiting:
                raise QueueFull
            self.inbox.extend(tickets)
            self.condition.notify()
        return tickets

    def cancel(self, tickets: list[Ticket]) -> None:
        """Let requests go whose caller has left or has enough."""
        with self.condition:
            for ticket in tickets:
                ticket.left = True
                self.leaving.append(ticket)
            self.condition.notify()

    def stop(self) -> None:
        """End the thread after its present step."""
        with self.condition:
            self.stopping = True
            self.condition.notify()

    def run(self) -> None:
        """Step until told to stop."""
        while True:
            with self.condition:
                while not (self.inbox or self.leaving or self.engine.busy or self.stopping):
                    self.condition.wait()
                if self.stopping:
                    break
                while self.inbox:
                    self._let_in(self.inbox.popleft())
                while self.leaving:
                    self._let_go(self.leaving.popleft())
            try:
                self._deliver(self.engine.step())
            except Exception as error:  # whatever it was, the callers must hear of it
                self._fail(f"{type(error).__name__}: {error}")
        self._fail("the server has stopped")

    def _let_in(self, ticket: Ticket) -> None:
        """Hand a request to the engine."""
        if ticket.left:
            return
        try:
            ticket.row = self.engine.submit(ticket.request)
        except ValueError as error:
            post([(ticket, Arrival(ticket.index, error=str(error)))])
            return
        self.tickets[id(ticket.row)] = ticket

    def _let_go(self, ticket: Ticket) -> None:
        """Free the row of a request."""
        if ticket.row is not None and self.tickets.pop(id(ticket.row), None):
            self.engine.cancel(ticket.row)

    def _deliver(self, got: list[tuple[Row, int, int]]) -> None:
        """Send every caller his new token."""
        news = []
        for row, token, _ in got:
            ticket = self.tickets.get(id(row))
            if ticket is None:
                continue
            ticket.n_shared = row.n_shared
            news.append((ticket, arrival(row, token, ticket.index)))
            if row.finished:
                del self.tickets[id(row)]
        post(news)

    def _fail(self, message: str) -> None:
        """Tell everybody that something went wrong, and empty the engine."""
        with self.condition:
            lost = [*self.tickets.values(), *self.inbox]
            self.inbox.clear()
        for ticket in self.tickets.values():
            self.engine.cancel(ticket.row)
        self.tickets.clear()
        self.engine.reset()
        post([(ticket, Arrival(ticket.index, error=message)) for ticket in lost])


def arrival(row: Row, token: int, index: int) -> Arrival:
    """Describe what a step brought to a row."""
    alternatives = row.alternatives[-1] if row.alternatives and not row.stopped else None
    return Arrival(index, None if row.stopped else token, alternatives, row.reason)


def post(news: list[tuple[Ticket, Arrival]]) -> None:
    """Put arrivals into their queues, in the thread that the queues belong to."""
    for loop in {ticket.loop for ticket, _ in news}:
        batch = [(ticket.queue, found) for ticket, found in news if ticket.loop is loop]
        try:
            loop.call_soon_threadsafe(put_all, batch)
        except RuntimeError:  # the loop is closed: nobody is there any more
            pass


def put_all(batch: list[tuple[asyncio.Queue, Arrival]]) -> None:
    """Put every arrival into its queue."""
    for queue, arrival in batch:
        queue.put_nowait(arrival)
