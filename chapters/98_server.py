# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The server: one model, many strangers
#
# The engine answers many at once. A server lets them in, from anywhere, with whatever they send. Anyone who can
# talk to OpenAI's API should be able to talk to the model that was trained an hour ago:
#
# ```python
# client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")      # nanochat serve
# client.chat.completions.create(model="laptop", messages=[{"role": "user", "content": "What is 12 + 30?"}])
# ```
#
# A server is promises: a stream that does not tear characters, an error that says what was wrong, a place that
# is free again as soon as its owner has left, a queue that ends, a stop that loses nobody's answer. This
# workshop chapter keeps them one by one. You need the engine of chapter `batching`; FastAPI and uvicorn do the
# HTTP. On a laptop it takes about 15 seconds.

# %%
import asyncio
import json
import threading
import time

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# ## From tokens to text, with stops
#
# Three things stand between a token and a reader. A character may be spread over tokens (chapter `serving`). A
# tool call is not text: it is a step, to be shown as one. And a caller may name **stop strings**: the answer ends
# before the first of them. A stop string may begin in one token and end in another, so text that could become
# one is held back until it is clear. With the stop `END` and tokens `a`, `EN`, `E`: `a` may go out, `EN` may
# not, and at the second `E` it turns out that `EN` was harmless.

# %%
#| default_exp serving.reply
# The text of a reply while its tokens arrive: whole characters, tool steps, stop strings.

# %%
#| export
import codecs
from collections.abc import Sequence

from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
class ReplyText:
    """Turn the tokens of one reply into text that may be shown, and into tool steps."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """Begin; the text ends before the first of the `stops`, none of them empty."""
        self.tokenizer, self.stops, self.stopped = tokenizer, tuple(stops), False
        self.steps: list[dict[str, str]] = []  # {"call": "6*7", "output": "42"}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # text that may be the beginning of a stop
        self._inside: list[int] | None = None  # the tokens of a call or an output
        self._call, self.in_tool = "", False  # whether the last token belonged to a step
        names = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
        self._marks = {tokenizer.encode_special(name): name for name in names}

    def feed(self, token: int) -> str:
        """Take the next token; return the text that can be shown now, perhaps none."""
        mark = self._marks.get(token)
        self.in_tool = mark is not None or self._inside is not None
        if mark is None:
            if self._inside is None:
                return self._release(self._decoder.decode(self.tokenizer.decode_bytes([token])))
            self._inside.append(token)
            return ""
        inside, self._inside = self.tokenizer.decode(self._inside or []), []
        if mark == "<|python_end|>":
            self._call = inside
        elif mark == "<|output_end|>":
            self._inside = None
            self.steps.append({"call": self._call, "output": inside})
        else:  # no character spans a tool call
            return self._release(self._decoder.decode(b"", final=True))
        return ""

    def finish(self) -> str:
        """Return what was held back, at the end of the reply."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, text: str) -> str:
        """Add text; return what no stop string can begin in any more."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max(map(len, self.stops), default=1) - 1
        keep = next(
            (n for n in range(min(longest, len(text)), 0, -1) if text[-n:] in self._beginnings(n)),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _beginnings(self, n: int) -> set[str]:
        """Return the first n characters of each longer stop string."""
        return {stop[:n] for stop in self.stops if len(stop) > n}


# %%
# NBVAL_CHECK_OUTPUT
tokenizer = Tokenizer.train(["plain text"], vocab_size=256 + 9)
text = ReplyText(tokenizer, stops=["END"])
print([text.feed(token) for token in b"aENEND, more"], text.stopped)
special, text = tokenizer.encode_special, ReplyText(tokenizer)
call = [special("<|python_start|>"), *b"6*7", special("<|python_end|>")]
call += [special("<|output_start|>"), *b"42", special("<|output_end|>"), *"é".encode()]
print([text.feed(token) for token in call], text.steps)

# %% [markdown]
# ## The worker: one thread owns the engine
#
# The server is one thread that waits for the network; the engine computes for milliseconds at a time and must
# not hold it up. So the engine lives in a thread of its own. Requests go in through an inbox, tokens come out
# through a queue for each request, and nothing else is shared. A reader who is slow lets his own queue grow,
# up to the length of one answer; nobody else waits for him.
#
# Two promises are kept here. *The queue ends*: when `max_waiting` requests wait already, the next one is turned
# away at once, with the advice to come back. Waiting without end helps nobody: a client gives up, asks again,
# and the queue fills with questions whose owners have left. *A fault stays small*: if a step fails, everybody
# in it gets an error, and the next request finds an empty engine.

# %%
#| default_exp serving.worker
# The thread that owns the engine: requests in, tokens out.

# %%
#| export
import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request, Row


# %%
#| export
class QueueFull(Exception):
    """Too many requests wait."""


class Draining(Exception):
    """No new requests: the server is about to stop."""


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


class Worker(threading.Thread):
    """Step the engine while there is work."""

    def __init__(self, engine: Engine, max_waiting: int = 64) -> None:
        """Keep the engine; nobody else may touch it from now on."""
        super().__init__(daemon=True, name="engine")
        self.engine, self.max_waiting = engine, max_waiting
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
            self._post([(ticket, Arrival(ticket.index, error=str(error)))])
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
            alternatives = row.alternatives[-1] if row.alternatives and not row.stopped else None
            kept = None if row.stopped else token
            news.append((ticket, Arrival(ticket.index, kept, alternatives, row.reason)))
            if row.finished:
                del self.tickets[id(row)]
        self._post(news)

    def _fail(self, message: str) -> None:
        """Tell everybody that something went wrong, and empty the engine."""
        with self.condition:
            lost = [*self.tickets.values(), *self.inbox]
            self.inbox.clear()
        for ticket in self.tickets.values():
            self.engine.cancel(ticket.row)
        self.tickets.clear()
        self.engine.reset()
        self._post([(ticket, Arrival(ticket.index, error=message)) for ticket in lost])

    def _post(self, news: list[tuple[Ticket, Arrival]]) -> None:
        """Put arrivals into their queues, in the thread that the queues belong to."""
        for loop in {ticket.loop for ticket, _ in news}:
            batch = [(t.queue, arrival) for t, arrival in news if t.loop is loop]
            try:
                loop.call_soon_threadsafe(put_all, batch)
            except RuntimeError:  # the loop is closed: nobody is there any more
                pass


def put_all(batch: list[tuple[asyncio.Queue, Arrival]]) -> None:
    """Put every arrival into its queue."""
    for queue, arrival in batch:
        queue.put_nowait(arrival)


# %% [markdown]
# A toy for the rest of the chapter: a model with random weights. It says nothing sensible, but it says it to
# many. Two callers, one of whom leaves after three tokens:

# %%
toy = GPT(GPTConfig(sequence_len=128, vocab_size=265, n_layer=2, n_embd=64))
for weight in toy.parameters():
    weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


async def two_callers() -> list[int]:
    worker = Worker(Engine(toy, tokenizer))
    worker.start()

    async def caller(n_wanted: int, seed: int) -> int:
        queue, got = asyncio.Queue(), 0
        tickets = worker.submit([Request([5, 6], max_tokens=20, temperature=0.0, seed=seed)], queue)
        while (arrival := await queue.get()).reason is None:
            got += 1
            if got == n_wanted:
                worker.cancel(tickets)
                return got
        return got + (arrival.token is not None)

    counts = await asyncio.gather(caller(99, 1), caller(3, 2))
    while not worker.idle:
        await asyncio.sleep(0.01)
    worker.stop()
    worker.join()
    return [*counts, len(worker.tickets)]


def run(coroutine):
    """Run a coroutine to its end, also where a notebook has a loop of its own."""
    result = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return result[0]


assert run(two_callers())[1:] == [3, 0]

# %% [markdown]
# ## What may be asked
#
# The form of a request is OpenAI's. It is written down as types; what does not fit them is refused with a
# message that names the field. Fields that we know and cannot serve are refused as well: a caller who asked
# for JSON must not get prose, and one who brought tools must not think that they were used. Only what cannot
# change the answer is accepted and left alone.

# %%
#| default_exp serving.protocol
# What may be asked of the server, in the form of OpenAI's API.

# %%
#| export
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Token = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


# %%
#| export
class Form(BaseModel):
    """A form with no unknown fields, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Form):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Dials(Form):
    """What completions and chats have in common; None leaves a dial to the server."""

    model: str
    n: int = Field(1, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[Token, Annotated[float, Field(ge=-100, le=100)]] = {}
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # these four change no answer
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @model_validator(mode="after")
    def check_stops(self) -> "Dials":
        """Refuse stops that could never or would always end a reply."""
        if len(self.stops) > 4 or not all(self.stops):
            raise ValueError("stop: at most 4 stop strings, none of them empty")
        return self


class Message(Form):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    name: str | None = None


class ResponseFormat(Form):
    """The form of the answer: text is the only one."""

    type: Literal["text"]


class ChatRequest(Dials):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] = Field([], max_length=0)


class CompletionRequest(Dials):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] = False


class TokenizeRequest(Form):
    """The body of /tokenize: a text, or the messages of a chat."""

    prompt: str | None = None
    messages: list[Message] | None = None

    @model_validator(mode="after")
    def check_one(self) -> "TokenizeRequest":
        """Want one of the two."""
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Form):
    """The body of /detokenize."""

    tokens: list[Token]


# %% [markdown]
# ## Errors that help
#
# Every error has OpenAI's shape, so its client turns it into the right exception: a `message` for the person, a
# `code` for the program, and the `param` that was wrong.

# %%
#| default_exp serving.errors
# Errors in the shape of OpenAI's API.

# %%
#| export
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class APIError(HTTPException):
    """Refuse a request."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, **headers: str
    ) -> None:
        """Say why.

        Args:
            status: the HTTP status.
            message: for a person: what was wrong, and what would do.
            code: for a program.
            param: the field that was wrong.
            headers: further headers, with _ for -.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, message, named)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """Return the error object."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the error as an answer."""
        return JSONResponse(self.body(), self.status_code, self.headers)


# %% [markdown]
# ## Replies
#
# A handler checks the prompt, submits it n times, and gathers what arrives. Whether it sends piece after piece
# or one whole answer is the last question, not the first: both read the same pieces. Whatever ends a handler, be
# it the last token or a client who has closed the window, its requests are cancelled on the way out.

# %%
#| default_exp serving.replies
# Answer one request: submit, gather the pieces, cancel what is left.

# %%
#| export
import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nanochat_lib.inference.row import Request
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import ChatRequest, Dials
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.serving.worker import Arrival, Draining, QueueFull, Worker
from nanochat_lib.tokenizer.tokenizer import Tokenizer

Noted = tuple[list[tuple[int, float]], bool]  # a token's alternatives, and whether it is a tool's
REASONS = {"stop": "stop", "length": "length", "loop": "length", "cancelled": "stop"}


# %%
#| export
@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing."""

    temperature: float = 0.0
    top_k: int | None = 50


@dataclass
class Piece:
    """What one token brought to one choice."""

    index: int
    text: str = ""
    noted: list[Noted] = field(default_factory=list)
    steps: list[dict[str, str]] = field(default_factory=list)
    reason: str | None = None


def make_requests(
    prompt: list[int], dials: Dials, defaults: Defaults, limit: int, alternatives: int | None
) -> list[Request]:
    """Make the n requests of a call.

    Args:
        prompt: ids.
        dials: what the caller wants.
        defaults: what holds otherwise.
        limit: tokens of the context.
        alternatives: as in `Request`.

    Raises:
        APIError: the prompt leaves no room in the context.
    """
    if len(prompt) >= limit:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, the context {limit}: at least one must be left "
            "for the reply; make it shorter",
            "context_length_exceeded",
            "messages" if isinstance(dials, ChatRequest) else "prompt",
        )
    pick = lambda value, other: other if value is None else value  # noqa: E731
    seed = pick(dials.seed, random.getrandbits(32))
    longest = getattr(dials, "max_completion_tokens", None) or dials.max_tokens
    return [
        Request(
            prompt,
            longest,
            pick(dials.temperature, defaults.temperature),
            pick(dials.top_k, defaults.top_k),
            pick(dials.top_p, 1.0),
            pick(dials.min_p, 0.0),
            f"{seed} {i}",
            dials.logit_bias,
            dials.presence_penalty,
            dials.frequency_penalty,
            alternatives,
            end_loops=True,
        )
        for i in range(dials.n)
    ]


class Reply:
    """The choices of one call while they arrive."""

    def __init__(
        self,
        worker: Worker,
        tokenizer: Tokenizer,
        requests: list[Request],
        stops: list[str],
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Submit the requests.

        Args:
            worker: has the engine.
            tokenizer: its.
            requests: the n requests of a call.
            stops: strings that end the text.
            gone: says whether the caller has left.

        Raises:
            APIError: the queue is full (429), or the server is about to stop (503).
        """
        self.worker, self.requests, self.queue = worker, requests, asyncio.Queue()
        self.gone, self.started, self.first_seconds = gone, time.perf_counter(), None
        self.texts = [ReplyText(tokenizer, stops) for _ in requests]
        self.n_tokens = 0
        try:
            self.tickets = worker.submit(requests, self.queue)
        except QueueFull:
            message = f"{worker.max_waiting} requests wait already: try again in a second"
            raise APIError(429, message, "queue_full", Retry_After="1") from None
        except Draining:
            message = "the server is about to stop: ask another one"
            raise APIError(503, message, "draining", Retry_After="5") from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what arrives until every choice has ended; leave no request behind.

        Raises:
            APIError: the engine failed.
        """
        going = set(range(len(self.tickets)))
        try:
            while going:
                arrival = await self.queue.get()
                if self.gone is not None and await self.gone():
                    return
                if arrival.index in going:
                    piece = self._take(arrival)
                    if piece.reason is not None:
                        going.discard(arrival.index)
                    yield piece
        finally:
            self.worker.cancel([self.tickets[i] for i in going])

    def _take(self, arrival: Arrival) -> Piece:
        """Turn an arrival into a piece."""
        if arrival.error is not None:
            raise APIError(500, f"the engine failed: {arrival.error}", "engine_failed")
        text, piece = self.texts[arrival.index], Piece(arrival.index)
        before = len(text.steps)
        if arrival.token is not None:
            if self.n_tokens == 0:
                self.first_seconds = time.perf_counter() - self.started
            self.n_tokens += 1
            piece.text = text.feed(arrival.token)
            if arrival.alternatives:
                piece.noted = [(arrival.alternatives, text.in_tool)]
        if arrival.reason is not None:
            piece.reason = REASONS[arrival.reason]
            piece.text += text.finish()
        if text.stopped:
            piece.reason = "stop"
            self.worker.cancel([self.tickets[arrival.index]])
        piece.steps = text.steps[before:]
        return piece

    def usage(self) -> dict[str, Any]:
        """Count tokens, and those of the prompt that had been read for somebody else."""
        prompt = len(self.requests[0].prompt)
        rows = [ticket.row for ticket in self.tickets if ticket.row is not None]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": prompt + self.n_tokens,
            "prompt_tokens_details": {"cached_tokens": max((r.n_shared for r in rows), default=0)},
        }


# %% [markdown]
# ## The routes
#
# Two routes do the work; their answers differ in form alone. A stream is *server-sent events*: lines that begin
# with `data: `, an empty line after each, and `[DONE]` at the end. Tool steps are no part of OpenAI's form for
# such a model; they come as `tool_steps` beside the content, where its clients do not look.

# %%
#| default_exp serving.formats
# Answers in the form of OpenAI's API: whole, and as a stream of events.

# %%
#| export
import json
import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import ChatRequest, CompletionRequest
from nanochat_lib.serving.replies import Noted, Piece, Reply
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
class Format:
    """Write the answer to a chat or a completion."""

    def __init__(self, tokenizer: Tokenizer, body: ChatRequest | CompletionRequest) -> None:
        """Begin an answer."""
        self.tokenizer, self.body = tokenizer, body
        self.chat = isinstance(body, ChatRequest)
        self.kind = "chat.completion" if self.chat else "text_completion"
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex[:24]}"
        self.created = int(time.time())

    def frame(self, choices: list[dict], kind: str, **more: Any) -> dict[str, Any]:
        """Put choices into the object that carries them."""
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
        return {**about, "choices": choices, **more}

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Describe one token and its log-probability; minus infinity is written as -9999."""
        data = self.tokenizer.decode_bytes([token])
        shown = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "id": token}
        return shown | {"logprob": logprob if math.isfinite(logprob) else -9999.0}

    def logprobs(self, noted: list[Noted]) -> dict[str, Any]:
        """Write the log-probabilities of some tokens, each with its likeliest alternatives."""
        entries = [[self.entry(*pair) for pair in pairs] for pairs, _ in noted]
        for (own, *_), (_, in_tool) in zip(entries, noted):
            own |= {"inside_tool": True} if in_tool else {}
        if self.chat:
            return {"content": [{**own, "top_logprobs": others} for own, *others in entries]}
        return {
            "tokens": [own["token"] for own, *_ in entries],
            "token_logprobs": [own["logprob"] for own, *_ in entries],
            "top_logprobs": [{o["token"]: o["logprob"] for o in others} for _, *others in entries],
        }

    def choice(self, index: int, text: str, noted: list, steps: list, reason: str | None) -> dict:
        """Write one whole choice."""
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if noted:
            choice["logprobs"] = self.logprobs(noted)
        if not self.chat:
            return choice | {"text": text}
        message = {"role": "assistant", "content": text}
        return choice | {"message": message | ({"tool_steps": steps} if steps else {})}

    async def whole(self, reply: Reply) -> dict[str, Any]:
        """Gather all pieces into one answer."""
        n = len(reply.tickets)
        texts, noted, steps, reasons = (
            [""] * n,
            *([[] for _ in range(n)] for _ in range(2)),
            [""] * n,
        )
        async for piece in reply.pieces():
            texts[piece.index] += piece.text
            steps[piece.index] += piece.steps
            noted[piece.index] += piece.noted
            reasons[piece.index] = piece.reason
        choices = [
            self.choice(i, *found) for i, found in enumerate(zip(texts, noted, steps, reasons))
        ]
        return self.frame(choices, self.kind, usage=reply.usage())

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Write one piece of a stream."""
        noted = self.logprobs(piece.noted) if piece.noted else None
        choice: dict[str, Any] = {
            "index": piece.index,
            "finish_reason": piece.reason,
            "logprobs": noted,
        }
        if not self.chat:
            return choice | {"text": piece.text}
        delta = {"content": piece.text} if piece.text else {}
        return choice | {"delta": delta | ({"tool_steps": piece.steps} if piece.steps else {})}

    async def stream(self, reply: Reply) -> AsyncIterator[str]:
        """Yield server-sent events, the last one [DONE]; an error becomes an event as well."""
        kind = "chat.completion.chunk" if self.chat else self.kind
        options = self.body.stream_options
        usage = options is not None and options.include_usage
        more = {"usage": None} if usage else {}
        try:
            if self.chat:
                for i in range(len(reply.tickets)):
                    opening = {"role": "assistant", "content": ""}
                    choice = {"index": i, "delta": opening, "finish_reason": None}
                    yield event(self.frame([choice], kind, **more))
            async for piece in reply.pieces():
                if piece.text or piece.steps or piece.noted or piece.reason:
                    yield event(self.frame([self.chunk(piece)], kind, **more))
            if usage:
                yield event(self.frame([], kind, usage=reply.usage()))
            yield "data: [DONE]\n\n"
        except APIError as error:
            yield event(error.body())


def event(data: dict[str, Any]) -> str:
    """Write one server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


# %% [markdown]
# ## At the gate
#
# Before any route sees a request, four questions: Is the server asked by a name that is its own? (A web page may
# point a name at 127.0.0.1 and talk to our server through the visitor's browser; the header `Host` gives it
# away.) Does the caller know the key, if there is one? The comparison takes equally long for every wrong key, or
# its time would tell how much of it was right. (A browser cannot send such a header for a page that it is only
# about to open; it can ask its user for a name and a password, so the key is taken as a password too.) Is the body of a reasonable size? And what did it come to: the
# gate counts, for `/metrics`.

# %%
#| default_exp serving.gate
# What every request passes: host, key, size, counting.

# %%
#| export
import base64
import hmac

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.worker import Worker


# %%
#| export
class Metrics:
    """What the server counts, in a registry of its own."""

    def __init__(self, worker: Worker) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        common = {"registry": self.registry, "namespace": "nanochat"}
        self.requests = Counter(
            "requests", "requests by route and status", ["route", "status"], **common
        )
        self.tokens = Counter("tokens", "tokens read and written", ["kind"], **common)
        self.first = Histogram("first_token_seconds", "wait for the first token", **common)
        Gauge("waiting", "requests without a row", **common).set_function(lambda: worker.waiting)
        Gauge("rows", "replies in the making", **common).set_function(lambda: len(worker.tickets))


def given_key(header: bytes) -> bytes:
    """Return the key that a header holds: a program's bearer token, or a person's password."""
    kind, _, value = header.partition(b" ")
    if kind.lower() != b"basic":
        return value if kind.lower() == b"bearer" else b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""


class Gate:
    """Ask every request for its host, its key and its size; an ASGI middleware."""

    def __init__(
        self, app, metrics: Metrics, key: str | None, hosts: frozenset[str] | None, max_bytes: int
    ) -> None:
        """Guard an app.

        Args:
            app: what lies behind.
            metrics: counts.
            key: every route but /health wants it, as a bearer token or as the password of any user;
                None lets everybody in.
            hosts: names that the server answers to, without ports; None for all.
            max_bytes: the largest body.
        """
        self.app, self.metrics, self.key = app, metrics, key
        self.hosts, self.max_bytes = hosts, max_bytes

    async def __call__(self, scope, receive, send) -> None:
        """Let a request through, or answer in its stead."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size, status = 0, 500

        async def counted_receive() -> dict:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise APIError(413, f"the body is larger than {self.max_bytes} bytes", "too_large")
            return message

        async def noted_send(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, counted_receive, noted_send)
        except APIError as error:
            status = error.status_code
            await error.response()(scope, receive, send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, str(status)).inc()

    def check(self, scope) -> None:
        """Refuse a request by its headers."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").rsplit("@", 1)[-1]
        name = host[: host.rfind(":")] if ":" in host.rsplit("]", 1)[-1] else host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise APIError(421, "this server does not answer to that name", "wrong_host")
        if self.key is not None and scope["path"] != "/health":
            given = given_key(headers.get(b"authorization", b""))
            if not hmac.compare_digest(given, self.key.encode()):
                ask = {"WWW_Authenticate": 'Basic realm="nanochat, the key is the password"'}
                message = "give the key as: Authorization: Bearer KEY"
                raise APIError(401, message, "invalid_api_key", **ask)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            raise APIError(413, f"the body is larger than {self.max_bytes} bytes", "too_large")


# %% [markdown]
# ## A page for people
#
# `web/chat.html` has no build step: conversations as trees (an edited question is a branch one can go back from),
# streams, the calculator's steps to unfold, how the tokenizer cuts what is being typed, for every token of a
# reply what else the model might have said, and what a head of the attention reads. What a user wrote becomes a text
# node, never HTML. What a model wrote may be Markdown, so it does become HTML, and passes a sanitizer that leaves
# headings, lists, code and formulas, and takes away everything that acts or loads. And if that should fail one day,
# the **content security policy** stands behind it: the browser runs no script but those that carry this answer's
# random number, and asks no other host. The libraries (`web/vendor`) are files of ours, so that the page works
# without the internet and nobody else can change them.

# %%
#| default_exp serving.page
# The chat page, and the files it loads.

# %%
#| export
import secrets

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from nanochat_lib.course.manifest import library_root
from nanochat_lib.serving.errors import APIError

POLICY = (  # the page may run its own scripts and talk to its own server, and nothing else
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


# %%
#| export
def add_page(app: FastAPI, inside: str | None) -> None:
    """Add the page's routes; `inside` is the model as JSON for the page's own engine, or None."""
    web = library_root() / "web"
    scripts = {path.relative_to(web).as_posix(): path for path in web.rglob("*.js")}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        text = (web / "chat.html").read_text(encoding="utf-8")
        policy = POLICY.format(nonce=nonce)
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return HTMLResponse(text.replace("NONCE", nonce), headers=headers)

    @app.get("/web/{name:path}", include_in_schema=False)
    async def script(name: str) -> Response:
        if name not in scripts:
            raise APIError(404, "there is no such script", "not_found")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(scripts[name].read_bytes(), 200, headers, "text/javascript")

    @app.get("/model.json", include_in_schema=False)
    async def model() -> Response:
        if inside is None:
            raise APIError(404, "this model is too large to look into in a browser", "too_large")
        return Response(inside, media_type="application/json")


# %%
#| default_exp serving.server
# The server: OpenAI's API over HTTP.

# %%
#| export
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from nanochat_lib.inference.engine import Engine
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.formats import Format
from nanochat_lib.serving.gate import Gate, Metrics
from nanochat_lib.serving.page import add_page
from nanochat_lib.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
)
from nanochat_lib.serving.replies import Defaults, Reply, make_requests
from nanochat_lib.serving.worker import Worker


# %%
#| export
@dataclass(frozen=True)
class ServerSettings:
    """What a server is told beside its model."""

    model: str = "nanochat"
    key: str | None = None
    hosts: frozenset[str] | None = None
    max_bytes: int = 1_000_000
    max_waiting: int = 64
    defaults: Defaults = Defaults()
    inside: str | None = None  # the model as JSON, for the page


class Service:
    """Answer what the routes are asked."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        """Give the engine to a worker, which does not run yet."""
        self.settings, self.tokenizer = settings, engine.tokenizer
        self.limit, self.most = engine.model.config.sequence_len, engine.max_rows
        ids = range(self.tokenizer.vocab_size)
        self.pieces = [readable(self.tokenizer.decode_bytes([i])) for i in ids]
        self.worker = Worker(engine, settings.max_waiting)
        self.metrics = Metrics(self.worker)

    def chat_prompt(self, messages: list[Message], param: str = "messages") -> list[int]:
        """Render a chat up to the place where the assistant speaks."""
        plain = []
        for message in messages:
            content = message.content
            if isinstance(content, list) and all(part.get("type") == "text" for part in content):
                content = "".join(str(part.get("text", "")) for part in content)
            role = "system" if message.role == "developer" else message.role
            plain.append({"role": role, "content": content})
        if plain[-1]["role"] != "user":
            raise APIError(400, "the last message must be a user's", "invalid_messages", param)
        try:
            return self.tokenizer.render_for_completion({"messages": plain})
        except (ValueError, TypeError) as error:
            raise APIError(400, str(error), "invalid_messages", param) from error

    def text_prompt(self, prompt: Any) -> list[int]:
        """Return the ids of a completion's prompt."""
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            [prompt] = prompt
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, prepend=self.tokenizer.bos_id)
        if not prompt or any(isinstance(part, str | list) for part in prompt):
            raise APIError(
                400, "prompt: one text or one list of tokens", "invalid_prompt", "prompt"
            )
        self.check_tokens(prompt, "prompt")
        return prompt

    def check_tokens(self, tokens: Any, param: str) -> None:
        """Refuse ids that no token has."""
        wrong = next((t for t in tokens if t >= self.tokenizer.vocab_size), None)
        if wrong is not None:
            message = (
                f"{param}: no token has the id {wrong}, the last is {self.tokenizer.vocab_size - 1}"
            )
            raise APIError(400, message, "invalid_token", param)

    async def answer(
        self, http: Request, body: ChatRequest | CompletionRequest, prompt: list[int]
    ) -> Response:
        """Answer a chat or a completion, whole or as a stream."""
        if body.model != self.settings.model:
            message = f"there is no model {body.model!r} here, but {self.settings.model!r}"
            raise APIError(400, message, "model_not_found", "model")
        if body.n > self.most:
            raise APIError(400, f"n is {body.n}, at most {self.most} fit", "invalid_n", "n")
        self.check_tokens(body.logit_bias, "logit_bias")
        noted = body.logprobs
        if isinstance(body, ChatRequest):
            noted = body.top_logprobs if body.logprobs else None
        requests = make_requests(prompt, body, self.settings.defaults, self.limit, noted)
        gone = None if body.stream else http.is_disconnected  # a stream notices by itself
        reply = Reply(self.worker, self.tokenizer, requests, body.stops, gone)
        form = Format(self.tokenizer, body)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            events = self.counted(reply, form.stream(reply))
            return StreamingResponse(events, 200, headers, "text/event-stream")
        try:
            return JSONResponse(await form.whole(reply))
        finally:
            self.count(reply)

    async def counted(self, reply: Reply, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """Pass events on, and count when they are over, in whatever way."""
        try:
            async for each in events:
                yield each
        finally:
            await events.aclose()
            self.count(reply)

    def count(self, reply: Reply) -> None:
        """Note what a reply came to."""
        self.metrics.tokens.labels("prompt").inc(len(reply.requests[0].prompt))
        self.metrics.tokens.labels("completion").inc(reply.n_tokens)
        if reply.first_seconds is not None:
            self.metrics.first.observe(reply.first_seconds)


# %%
#| export
def create_app(service: Service) -> FastAPI:
    """Build the web application around a service; the worker runs while the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app, settings = FastAPI(title="nanochat", lifespan=lifespan), service.settings
    add_answers(app, service)
    add_information(app, service)
    add_page(app, settings.inside)
    handle_errors(app)
    gate = (service.metrics, settings.key, settings.hosts, settings.max_bytes)
    app.add_middleware(Gate, *gate)
    return app


def add_answers(app: FastAPI, service: Service) -> None:
    """Add the routes that ask the model, and those that know its tokens."""

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request, body: ChatRequest) -> Response:
        return await service.answer(http, body, service.chat_prompt(body.messages))

    @app.post("/v1/completions")
    async def completions(http: Request, body: CompletionRequest) -> Response:
        return await service.answer(http, body, service.text_prompt(body.prompt))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict:
        if body.messages is not None:
            tokens = service.chat_prompt(body.messages)
        else:
            tokens = service.tokenizer.encode(body.prompt)
        pieces = [service.pieces[token] for token in tokens]
        found = {"tokens": tokens, "pieces": pieces, "count": len(tokens)}
        return found | {"max_model_len": service.limit}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict:
        service.check_tokens(body.tokens, "tokens")
        return {"prompt": service.tokenizer.decode(body.tokens)}


def readable(data: bytes) -> str:
    """Return the text of a token, or its bytes as <C3> where they are no whole characters."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in data)


def add_information(app: FastAPI, service: Service) -> None:
    """Add the routes that say what is here and how it is."""
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict:
        about = {"object": "model", "created": started, "owned_by": "nanochat"}
        one = {"id": service.settings.model, **about, "max_model_len": service.limit}
        return {"object": "list", "data": [one]}

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        up = service.worker.is_alive() and not service.worker.draining
        return PlainTextResponse("ready" if up else "not ready", 200 if up else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def handle_errors(app: FastAPI) -> None:
    """Give every error OpenAI's shape."""

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def misfit(http: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        message = f"{param or 'body'}: {first['msg']}"
        if "json" not in http.headers.get("content-type", ""):  # a page elsewhere cannot send that
            message = "body: send JSON, with the header content-type: application/json"
        return APIError(400, message, "invalid_value", param).response()

    @app.exception_handler(HTTPException)
    async def lost(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return APIError(error.status_code, str(error.detail), code).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return APIError(500, "the server failed; its log says more", "internal").response()


class PatientServer(uvicorn.Server):
    """Finish what has begun before stopping; a second signal stops at once."""

    def __init__(self, service: Service, patience: float = 30.0, **config: Any) -> None:
        """Serve a service; further arguments are uvicorn's, patience is in seconds."""
        super().__init__(uvicorn.Config(create_app(service), log_level="warning", **config))
        self.service, self.patience = service, patience

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Turn new requests away, and stop when the last reply has ended."""
        if self.service.worker.draining:
            super().handle_exit(sig, frame)
            return
        self.service.worker.draining = True
        threading.Thread(target=self.wait_and_exit, args=(sig, frame), daemon=True).start()

    def wait_and_exit(self, sig: int, frame: Any) -> None:
        """Wait for the replies that are being made, but not for ever."""
        end = time.monotonic() + self.patience
        while not self.service.worker.idle and time.monotonic() < end:
            time.sleep(0.02)
        super().handle_exit(sig, frame)


# %%
#| default_exp serving.serve
# The command `nanochat serve`.

# %%
#| export
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_lib.serving.one_file import inside
from nanochat_lib.serving.replies import Defaults
from nanochat_lib.serving.runs import find_run, last_stage, load_engine
from nanochat_lib.serving.server import PatientServer, ServerSettings, Service
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
LARGEST_INSIDE = 5_000_000  # weights; a browser reads with them about 200 tokens a second


# %%
#| export
@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained model with OpenAI's API; the variable NANOCHAT_API_KEY sets a key."""

    run: str | None = None
    """name of the run; the newest one by default"""
    stage: Literal["rl", "sft", "mid", "base"] | None = None
    """rl by default, or sft if the run has no rl"""
    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines in"""
    port: int = 8000
    """0 takes any that is free"""
    temperature: float = 0.0
    """for requests that name none"""
    top_k: int | None = 50
    """for requests that name none"""
    max_rows: int = 64
    """replies in the making at once"""
    max_waiting: int = 64
    """requests that may wait for a row"""
    keep_mb: int = 256
    """memory for what past texts have left in the cache"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


def look_inside(folder: Path, stage: str, tokenizer: Tokenizer) -> str | None:
    """Return a model as JSON for the page's own engine; None for one that would be slow there."""
    model, _ = load_model(folder / stage, tokenizer)
    small = model.num_params() <= LARGEST_INSIDE
    return json.dumps(inside(model, tokenizer, folder.name)) if small else None


def serve(config: ServeConfig) -> int:
    """Serve until a signal comes; replies in the making are finished first.

    Returns:
        0, the exit code.

    Raises:
        ValueError: there is no such model, or the port is taken.
    """
    folder = find_run(config.run, config.stage)
    stage = config.stage or last_stage(folder)
    engine = load_engine(folder, stage, config.device)
    engine.max_rows, engine.kept.room = config.max_rows, config.keep_mb * 10**6
    key, loopback = os.environ.get("NANOCHAT_API_KEY"), config.host in LOOPBACK | {"::1"}
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {config.host}:{config.port} ({error.strerror}): try --port "
            f"{config.port + 1}"
        ) from error
    settings = ServerSettings(
        model=folder.name,
        key=key,
        hosts=LOOPBACK if loopback else None,
        max_waiting=config.max_waiting,
        defaults=Defaults(config.temperature, config.top_k),
        inside=look_inside(folder, stage, engine.tokenizer),
    )
    server = PatientServer(Service(engine, settings))
    port = listening.getsockname()[1]
    print(
        f"{folder.name}: http://{config.host}:{port}/ for people, /v1 for programs (Ctrl-C stops)",
        flush=True,
    )
    if not loopback and key is None:
        print("whoever reaches this machine may ask: NANOCHAT_API_KEY sets a key", flush=True)
    server.run(sockets=[listening])
    return 0


# %% [markdown]
# ## Use it
#
# The toy at a port of its own, and OpenAI's client in front of it. (In a terminal: `nanochat serve`.)

# %%
from openai import APIStatusError, OpenAI

from nanochat_lib.serving.server import PatientServer, ServerSettings, Service

service = Service(Engine(toy, tokenizer, max_rows=8), ServerSettings(model="toy", max_waiting=4))
server = PatientServer(service, port=0)
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

# %%
question = [{"role": "user", "content": "hello"}]
answer = client.chat.completions.create(model="toy", messages=question, max_tokens=12)
print(answer.usage.prompt_tokens, "tokens read,", answer.usage.completion_tokens, "written")
stream = client.chat.completions.create(
    model="toy", messages=question, max_tokens=12, stream=True, temperature=1.0, seed=3
)
print(sum(bool(chunk.choices[0].delta.content) for chunk in stream), "pieces in the stream")

# %%
# NBVAL_CHECK_OUTPUT
for wrong in (
    {"model": "gpt"},
    {"max_tokens": 0},
    {"messages": [{"role": "user", "content": "a" * 200}]},
):
    try:
        client.chat.completions.create(**{"model": "toy", "messages": question, **wrong})
    except APIStatusError as error:
        print(error.status_code, error.body["code"], "-", error.body["message"])

# %% [markdown]
# ## What goes wrong: a queue that never ends
#
# Forty people ask at once, on a machine with eight rows and four places to wait. Who is turned away knows it
# at once.


# %%
async def crowd(n: int) -> list[tuple[int, float]]:
    import httpx

    async with httpx.AsyncClient(timeout=60) as http:

        async def ask(i: int) -> tuple[int, float]:
            start = time.perf_counter()
            body = {"model": "toy", "messages": question, "max_tokens": 40, "temperature": 1.0}
            answer = await http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
            return answer.status_code, time.perf_counter() - start

        return await asyncio.gather(*(ask(i) for i in range(n)))


results = run(crowd(40))
for status in (200, 429):
    seconds = [wait for code, wait in results if code == status]
    print(f"{status}: {len(seconds)} people, the longest wait {max(seconds, default=0):.2f} s")

# %%
server.should_exit = True
thread.join()
assert {code for code, _ in results} <= {200, 429} and not thread.is_alive()

# %% [markdown]
# ## Recap
#
# One thread owns the engine; callers get tokens through queues of their own. Text goes out when it is whole and
# no stop string can begin in it. A full queue says so, a caller who leaves frees his row, a signal lets replies
# end, a fault is an error object and not a silence. What does not fit is refused by name.
#
# The library now has `serving.reply`, `serving.worker`, `serving.protocol`, `serving.errors`,
# `serving.replies`, `serving.formats`, `serving.gate`, `serving.server` and `serving.serve`.
