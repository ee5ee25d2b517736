# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The pool: when one engine is not enough
#
# A machine with eight GPUs has room for eight engines, and one Python process drives one of them well. So we start a
# process for each, and put one queue in front:
#
# ```python
# pool = Pool(make_engine, 8, tokenizer, limit)      # answers as a Worker does; nanochat serve --workers 8
# ```
#
# With processes comes something that a thread never did: one may be killed, by the system that is out of memory, or
# by a fault of the GPU. Whoever was being answered by it must hear of it, all others must notice nothing, and a
# new process must take its place. You need the worker of chapter `answers`. On a laptop the chapter takes about
# 30 seconds, nearly all of them to start processes.

# %%
import asyncio
import os
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import torch

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.serving.runs import load_engine
from nanochat_lib.training.checkpoint import save_checkpoint

# %% [markdown]
# ## One queue, not one for each
#
# Two tills in a shop, each with its own queue: you choose one, and the other moves faster. With one queue for both,
# the next free till takes the next customer, and nobody waits while a till is free. How much that is worth, a
# small calculation shows: 2,000 customers come at random, and each takes a random time.


# %%
def mean_wait(one_queue: bool, n: int = 2_000, load: float = 0.8) -> float:
    """Return the mean wait before two tills, in units of the time that a customer takes on average."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: -torch.rand(n, generator=generator).log()  # noqa: E731
    arrivals, lasting = (draw() / (2 * load)).cumsum(0).tolist(), draw().tolist()
    free, waits = [0.0, 0.0], []
    for i, (now, needed) in enumerate(zip(arrivals, lasting)):
        till = free.index(min(free)) if one_queue else i % 2
        begin = max(now, free[till])
        waits.append(begin - now)
        free[till] = begin + needed
    return sum(waits) / n


# %%
# NBVAL_CHECK_OUTPUT
for one_queue in (False, True):
    print(f"{'one queue' if one_queue else 'two queues'}: {mean_wait(one_queue):.2f}")

# %% [markdown]
# So requests wait with the parent, and a process gets only what it has a row for.
#
# ## A process with an engine
#
# The child reads requests from a pipe, steps its engine, and sends back what each step brought. It never blocks on the
# pipe while there is something to compute. A form (chapter `forms`) does not fit through a pipe; its
# grammar does. When the parent is gone, the pipe ends, and so does the child.

# %%
#| default_exp serving.child
# What runs in a process of a pool: an engine, and the requests that it answers.

# %%
#| export
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.forms import Forms
from nanochat_lib.inference.row import Request
from nanochat_lib.serving.runs import load_engine
from nanochat_lib.serving.worker import Arrival, arrival

News = list[tuple[int, Arrival, int]]  # a request's number, what arrived, tokens read before


# %%
#| export
class Child:
    """What runs in a process: an engine, and the requests that it answers."""

    def __init__(self, connection: Connection, engine: Engine) -> None:
        """Begin with nothing to do."""
        self.connection, self.engine = connection, engine
        self.forms, self.rows = Forms(engine.tokenizer), {}

    def run(self) -> None:
        """Answer until the pipe ends."""
        self.connection.send([])  # ready
        while True:
            news = []
            while self.connection.poll(0 if self.engine.busy or news else None):
                news += self.hear(*self.connection.recv())
            news += self.step()
            self.connection.send(news)

    def hear(self, number: int, request: Request | None, grammar: str | None) -> News:
        """Take a request, or let one go."""
        if request is None:
            row = self.rows.pop(number, None)
            if row is not None:
                self.engine.cancel(row)
            return []
        try:
            form = None if grammar is None else self.forms.compile(grammar)
            self.rows[number] = self.engine.submit(replace(request, form=form))
        except ValueError as error:
            return [(number, Arrival(0, error=str(error)), 0)]
        return []

    def step(self) -> News:
        """Step the engine; if that fails, everybody in it hears of it."""
        try:
            got = {id(row): token for row, token, _ in self.engine.step()}
        except Exception as error:  # whatever it was, the callers must hear of it
            lost, self.rows = self.rows, {}
            self.engine.reset()
            message = f"{type(error).__name__}: {error}"
            return [(number, Arrival(0, error=message), 0) for number in lost]
        brought = [(n, row) for n, row in self.rows.items() if id(row) in got]
        self.rows = {n: row for n, row in self.rows.items() if not row.finished}
        return [(n, arrival(row, got[id(row)], 0), row.n_shared) for n, row in brought]


def load_member(
    folder: Path, stage: str, device: str, max_rows: int, keep_mb: int, n: int, index: int
) -> Engine:
    """Load the engine of process `index` out of n, in its own memory or on its own GPU.

    Args:
        folder: a run's.
        stage: whose newest checkpoint answers.
        device: as in `pick_device`; with several processes auto and cuda spread over the GPUs.
        max_rows: replies in the making at once.
        keep_mb: memory for what past texts have left in the cache.
        n: processes.
        index: from 0.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if n > 1 and gpus > 1:
        device = f"cuda:{index % gpus}"  # has never run on several GPUs
    engine = load_engine(folder, stage, device)
    engine.max_rows, engine.kept.room = max_rows, keep_mb * 10**6
    return engine


def child_main(descriptor: int) -> None:
    """Run a process of a pool, at the other end of whose pipe the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    connection = Connection(descriptor)
    try:
        make_engine, index = connection.recv()
        Child(connection, make_engine(index)).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone


# %% [markdown]
# ## The parent
#
# For each process the parent has a thread that listens to its pipe. The end of the pipe is the news of a death, and
# no time-out or heartbeat is needed: the system closes the pipe of whoever dies, in whatever way. The thread
# tells the callers, and starts another process. If that one dies before it was ever ready, and the next, and the next,
# something is wrong that no start will mend, and the place is given up.


# %%
#| default_exp serving.pool
# Several processes with an engine each, behind one queue.

# %%
#| export
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


# %% [markdown]
# ## Use it
#
# Two processes with a model of random weights on the disk, and eight callers. (What a process shall run it must find
# in a module, so the engine is made by a function of the library.)

# %%
from nanochat_lib.serving.child import load_member
from nanochat_lib.serving.pool import Pool

folder = tempfile.TemporaryDirectory()
tokenizer = Tokenizer.train(["plain text"], vocab_size=256 + 9)
toy = GPT(GPTConfig(sequence_len=128, vocab_size=265, n_layer=2, n_embd=64))
for weight in toy.parameters():
    weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
tokenizer.save(Path(folder.name) / "tokenizer")
meta = {"config": vars(toy.config), "tokenizer_hash": tokenizer.hash}
save_checkpoint(Path(folder.name) / "sft", 1, toy, [], meta)
make_engine = partial(load_member, Path(folder.name), "sft", "cpu", 4, 16, 2)


async def call(pool: Pool, seed: int, n: int = 100) -> tuple[int, str | None]:
    """Ask for n tokens; return how many came, and what went wrong."""
    queue, got = asyncio.Queue(), 0
    pool.submit([Request([5, 6], n, seed=seed)], queue)
    while True:
        brought = await queue.get()
        got += brought.token is not None
        if brought.reason is not None or brought.error is not None:
            return got, brought.error


async def calls(pool: Pool, n: int) -> list[tuple[int, str | None]]:
    return await asyncio.gather(*(call(pool, seed) for seed in range(n)))


def run(coroutine):
    """Run a coroutine to its end, also where a notebook has a loop of its own."""
    result = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return result[0]


# %%
pool = Pool(make_engine, 2, tokenizer, limit=128, max_rows=4)
pool.start()
start = time.perf_counter()
while not all(member.ready for member in pool.members):
    time.sleep(0.05)
print(f"both are ready after {time.perf_counter() - start:.0f} s: each has imported torch anew")
answers = run(calls(pool, 16))
assert all(error is None and got > 0 for got, error in answers) and pool.idle
print("answered:", [member.served for member in pool.members])

# %% [markdown]
# ## What goes wrong: one of them is killed
#
# Eight callers, four with each process. We kill one in the middle, as the system does when memory runs out: without a
# word, and without a chance to say goodbye.


# %%
async def killed_in_the_middle() -> list[tuple[int, str | None]]:
    asked = asyncio.create_task(calls(pool, 8))
    while pool.n_rows < 8:
        await asyncio.sleep(0)
    os.kill(pool.members[0].process.pid, signal.SIGKILL)
    return await asked


answers = run(killed_in_the_middle())
for error in {error for _, error in answers}:
    print(sum(e == error for _, e in answers), "callers:", error or "a whole answer")
assert sum(error is None for _, error in answers) >= 4

# %% [markdown]
# Those who were with the other process got their whole answers, and who asks now is answered as well: at first by one
# process, then by two again.

# %%
assert all(error is None for _, error in run(calls(pool, 8)))
while not all(member.ready for member in pool.members):
    time.sleep(0.05)
answers = run(calls(pool, 16))
assert all(error is None for _, error in answers)
print("answered:", [member.served for member in pool.members])
pool.stop()
folder.cleanup()

# %% [markdown]
# ## Beyond one machine
#
# The next step would be processes on other machines, weights that no single GPU can hold, and a queue that knows
# which of them has read which beginning. That is where our code ends, and where engines such as vLLM and SGLang begin:
# the same ideas as in chapters `inference` and `batching`, with kernels for every card. Chapter
# `elsewhere` writes your model for them.
#
# ## Recap
#
# One queue in front, a process for each engine, a pipe between. The pipe's end is the news of a death; callers hear
# of it, others do not notice, and a new process takes the place, but not for ever. What cannot go through a pipe, a
# compiled form, goes as what it was made of.
#
# The library has `Pool` and `load_member`, and `nanochat serve --workers 2` uses them.
