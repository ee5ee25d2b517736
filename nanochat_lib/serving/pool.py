# Generated from chapters/98_pool.py by `course build`; edit that file.
"""Several processes with an engine each, behind one queue."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request
from nanochat_lib.serving.child import News
from nanochat_lib.serving.worker import Arrival, Draining, NoWorker, QueueFull, Ticket, post
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["MOST_STARTS", "CHILD", "Member", "Pool"]

MOST_STARTS = 3  # in a row, without ever being ready
CHILD = (
    "import sys; from nanochat_lib.serving.child import child_main; child_main(int(sys.argv[1]))"
)


@dataclass(eq=False)
class Member:
    """One process of a pool, and what it is answering."""

    index: int
    process: subprocess.Popen | None = None
    connection: Connection | None = None
    ready: bool = False
    starts: int = 0
    served: int = 0
    tickets: dict[int, Ticket] = field(default_factory=dict)


class Pool:
    """Answer with several processes; asked as a `Worker` is."""

    def __init__(
        self,
        make_engine: Callable[[int], Engine],
        n: int,
        tokenizer: Tokenizer,
        limit: int,
        max_rows: int = 64,
        max_waiting: int = 64,
    ) -> None:
        """Make a pool that has not started.

        Args:
            make_engine: builds the engine of process i, inside it; must be picklable.
            n: processes.
            tokenizer: the model's.
            limit: tokens of its context.
            max_rows: replies in the making in one process.
            max_waiting: requests that may wait for a row.
        """
        self.make_engine, self.tokenizer, self.limit = make_engine, tokenizer, limit
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.draining = self.stopping = False
        self.members = [Member(i) for i in range(n)]
        self.inbox: deque[Ticket] = deque()
        self.lock, self.count = threading.RLock(), 0

    @property
    def waiting(self) -> int:
        """Count the requests that no process has."""
        return len(self.inbox)

    @property
    def n_rows(self) -> int:
        """Count the requests that some process has."""
        return sum(len(member.tickets) for member in self.members)

    @property
    def idle(self) -> bool:
        """Say whether nobody waits for anything."""
        return not self.waiting and not self.n_rows

    def is_alive(self) -> bool:
        """Say whether some process is ready."""
        return any(member.ready for member in self.members)

    def start(self) -> None:
        """Start all processes; requests wait until the first is ready."""
        for member in self.members:
            self._begin(member)

    def stop(self) -> None:
        """End all processes."""
        with self.lock:
            self.stopping = True
            members = [member for member in self.members if member.process is not None]
        for member in members:
            member.process.terminate()
        for member in members:
            try:
                member.process.wait(5)
            except subprocess.TimeoutExpired:
                member.process.kill()
        self._fail("the server has stopped")

    def submit(self, requests: list[Request], queue: asyncio.Queue) -> list[Ticket]:
        """Take some requests of one caller, all or none; what arrives for them goes into the queue.

        Raises:
            QueueFull: too many wait already.
            Draining: the server is about to stop.
            NoWorker: no process could be started.
        """
        loop = asyncio.get_running_loop()
        tickets = [Ticket(request, i, queue, loop) for i, request in enumerate(requests)]
        with self.lock:
            if self.draining:
                raise Draining
            if all(member.starts >= MOST_STARTS for member in self.members):
                raise NoWorker("no worker could be started: the server's log says why")
            if self.waiting and self.waiting + len(tickets) > self.max_waiting:
                raise QueueFull
            self.inbox.extend(tickets)
            self._dispatch()
        return tickets

    def cancel(self, tickets: list[Ticket]) -> None:
        """Let requests go whose caller has left or has enough."""
        with self.lock:
            for ticket in tickets:
                ticket.left = True
            for member in self.members:
                gone = [number for number, ticket in member.tickets.items() if ticket.left]
                for number in gone:
                    del member.tickets[number]
                    self._send(member, number, None, None)
            self._dispatch()

    def _begin(self, member: Member) -> None:
        """Start a process, and a thread that listens to it."""
        member.connection, theirs = Pipe()
        descriptor = theirs.fileno()
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", CHILD, str(descriptor)]
        member.process = subprocess.Popen(command, pass_fds=[descriptor], env=paths)
        theirs.close()  # the child has the only other end: with it the pipe ends
        self._send(member, self.make_engine, member.index)
        threading.Thread(target=self._listen, args=(member,), daemon=True).start()

    def _listen(self, member: Member) -> None:
        """Pass on what a process sends, until it ends; then start another."""
        try:
            while True:
                self._take(member, member.connection.recv())
        except (EOFError, OSError):
            member.process.kill()  # where it has closed the pipe and lives on
            member.process.wait()
        with self.lock:
            lost, member.tickets = list(member.tickets.values()), {}
            member.starts = 1 if member.ready else member.starts + 1
            member.ready = False
            message = "the process that was answering has ended; ask again"
            post([(t, Arrival(t.index, error=message)) for t in lost])
            if self.stopping:
                return
            if member.starts < MOST_STARTS:
                self._begin(member)
            elif all(other.starts >= MOST_STARTS for other in self.members):
                self._fail("no worker could be started: the server's log says why")

    def _take(self, member: Member, news: News) -> None:
        """Give arrivals to those who wait for them, and freed rows to others."""
        with self.lock:
            member.ready, found = True, []
            for number, brought, n_shared in news:
                ticket = member.tickets.get(number)
                if ticket is None:  # has left meanwhile
                    continue
                ticket.n_shared = n_shared
                found.append((ticket, replace(brought, index=ticket.index)))
                if brought.reason is not None or brought.error is not None:
                    del member.tickets[number]
                    member.served += 1
            post(found)
            self._dispatch()

    def _dispatch(self) -> None:
        """Give waiting requests to the processes that have rows, the least busy first."""
        while self.inbox:
            free = [m for m in self.members if m.ready and len(m.tickets) < self.max_rows]
            if not free:
                return
            ticket = self.inbox.popleft()
            if ticket.left:
                continue
            member = min(free, key=lambda m: len(m.tickets))
            self.count += 1
            member.tickets[self.count] = ticket
            form = ticket.request.form
            request = replace(ticket.request, form=None)
            self._send(member, self.count, request, None if form is None else form.grammar)

    def _send(self, member: Member, *message: Any) -> None:
        """Send to a process; if it is dying, its thread will tell everybody."""
        try:
            member.connection.send(message)
        except OSError:
            pass

    def _fail(self, message: str) -> None:
        """Tell everybody who waits that nobody will answer."""
        with self.lock:
            lost = [*self.inbox, *(t for m in self.members for t in m.tickets.values())]
            self.inbox.clear()
            for member in self.members:
                member.tickets.clear()
        post([(ticket, Arrival(ticket.index, error=message)) for ticket in lost])
