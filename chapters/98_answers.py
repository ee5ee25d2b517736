# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Answers: many askers, one engine
#
# The engine answers many at once. Those who ask want text and not tokens, each his own, in the form that their
# program expects: OpenAI's, since most programs speak it. Between the two lies this chapter:
#
# ```python
# reply = Reply(worker, tokenizer, make_requests(prompt, body, ...), stops=["END"])
# async for piece in reply.pieces(): ...        # whole characters, tool steps, the reason of the end
# ```
#
# Text that is not torn, a queue that ends, a caller who leaves and is forgotten, and three shapes of an answer: a
# chat, a completion, a response. The next workshop chapter puts HTTP around it. You need the engine of chapter
# `batching` and the forms of chapter `forms`. On a laptop it takes about 10 seconds.

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
        self.call, self.in_tool = "", False  # whether the last token belonged to a step
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
            self.call = inside
        elif mark == "<|output_end|>":
            self._inside = None
            self.steps.append({"call": self.call, "output": inside})
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
from typing import Protocol, runtime_checkable

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
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
# message that names the field. Fields that we know and cannot serve are refused as well: a caller who brought
# a tool must not think that it was used. Only what cannot change the answer is accepted and left alone.

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


class FunctionCall(Form):
    """What a tool is called with: `arguments` is JSON, in a string."""

    name: str
    arguments: str


class ToolCall(Form):
    """A call that the assistant made, and left to the caller."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Form):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    tool_steps: list[Any] | None = None  # of an answer that is sent back; the content says the same
    refusal: None = None


class JSONSchema(Form):
    """A named schema for an answer."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Form):
    """The form of an answer: text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def check_schema(self) -> "ResponseFormat":
        """Want a schema where one is promised."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self


class StructuredOutputs(Form):
    """Forms that OpenAI's API has not, named as vLLM names them."""

    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def check_one(self) -> "StructuredOutputs":
        """Want one of the two."""
        if (self.regex is None) == (self.choice is None):
            raise ValueError("give either regex or choice")
        return self


class Function(Form):
    """A function that the caller offers."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Form):
    """A tool that the caller offers."""

    type: Literal["function"]
    function: Function


class ChatRequest(Dials):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None  # changes no answer: one call at a time


class CompletionRequest(Dials):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] = False
    structured_outputs: StructuredOutputs | None = None


class InputItem(Form):
    """One message of a response's input."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    id: str | None = None  # these two come back from an answer, and change nothing
    status: str | None = None


class TextFormat(Form):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def check_schema(self) -> "TextFormat":
        """Want a schema where one is promised."""
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("a schema belongs to the type json_schema, and to no other")
        return self


class TextOptions(Form):
    """How a response's text shall be."""

    format: TextFormat | None = None


class ResponseRequest(Form):
    """The body of /v1/responses: text in, text out; nothing is kept on the server."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stream: bool = False
    text: TextOptions | None = None
    tools: list[Any] = Field([], max_length=0)
    previous_response_id: None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None  # these change no answer
    metadata: dict[str, str] | None = None
    user: str | None = None


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
# ## From messages to a prompt
#
# A chat is rendered up to the place where the assistant speaks. Two things make it more than a call of the
# tokenizer. Content may come in parts; parts of text are joined, and an assistant's may hold the calls that it made,
# which our page sends back so that the model sees its whole turn.
#
# And a caller may bring **tools**. This model was trained with one, the calculator, which the server works itself. A
# caller who offers a function of that name wants to work it: then the reply ends with the call, and the next
# request brings the result. The assistant's turn is not over, so the prompt ends inside it, and the model goes on
# where it waited. Any other tool the model has never seen, and the caller is told so.

# %%
#| default_exp serving.prompts
# From the messages of a chat to the tokens of a prompt.

# %%
#| export
import json
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import Message, Tool
from nanochat_lib.tokenizer.conversation import content_segments
from nanochat_lib.tokenizer.tokenizer import Tokenizer

CALCULATOR = "calculator"  # the one tool, by the name under which a caller may offer it


# %%
#| export
def check_tools(tools: list[Tool]) -> None:
    """Refuse tools that the model does not know."""
    for i, tool in enumerate(tools):
        properties = (tool.function.parameters or {}).get("properties")
        if tool.function.name != CALCULATOR or set(properties or {}) != {"expression"}:
            message = (
                f"the model was trained with one tool: a function {CALCULATOR!r} with one parameter, a string "
                f"`expression`; {tool.function.name!r} is another one"
            )
            raise APIError(400, message, "unknown_tool", f"tools.{i}")


def joined(content: Any) -> Any:
    """Join content that comes as parts of text; leave any other as it is."""
    kinds = ("text", "input_text", "output_text")
    if isinstance(content, list) and all(part.get("type") in kinds for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def parts(content: Any) -> list[dict[str, str]]:
    """Return an assistant's content as parts."""
    content = joined(content)
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content or [])


def made_calls(message: Message) -> list[dict[str, str]]:
    """Return the calls of a message as parts."""
    found = []
    for call in message.tool_calls or []:
        try:
            expression = json.loads(call.function.arguments)["expression"]
        except (ValueError, TypeError, KeyError):
            expression = None
        if call.function.name != CALCULATOR or not isinstance(expression, str):
            raise ValueError(
                f"the call {call.id!r} must be one of {CALCULATOR!r}, its arguments JSON with a string "
                "`expression`"
            )
        found.append({"type": "python", "text": expression})
    return found


def turns(messages: list[Message]) -> tuple[list[dict[str, Any]], list[dict[str, str]] | None]:
    """Return a chat as the tokenizer knows it, and the parts of a turn of the assistant that is not over.

    Raises:
        ValueError: a tool's answer without a call, or a call without an answer.
    """
    plain: list[dict[str, Any]] = []
    waiting: list[str] = []  # calls that have no answer yet
    open_turn: list[dict[str, str]] | None = None  # of an assistant who waits, or has got an answer
    for i, message in enumerate(messages):
        where = f"message {i} ({message.role})"
        if message.role == "tool":
            if open_turn is None or not waiting or message.tool_call_id != waiting[0]:
                raise ValueError(f"{where}: answers no call; send the call's message before it")
            waiting.pop(0)
            open_turn.append({"type": "python_output", "text": str(joined(message.content))})
            continue
        if waiting:
            raise ValueError(f"{where}: the call {waiting[0]!r} waits for an answer, role tool")
        if message.role == "assistant" and (open_turn is not None or message.tool_calls):
            if len(message.tool_calls or []) > 1:
                raise ValueError(f"{where}: one call at a time")
            open_turn = (open_turn or []) + parts(message.content) + made_calls(message)
            waiting = [call.id for call in message.tool_calls or []]
            if not waiting:
                plain.append({"role": "assistant", "content": open_turn})
                open_turn = None
            continue
        if open_turn is not None:
            plain.append({"role": "assistant", "content": open_turn})
            open_turn = None
        role = "system" if message.role == "developer" else message.role
        plain.append({"role": role, "content": joined(message.content)})
    if waiting:
        raise ValueError(f"the call {waiting[0]!r} waits for an answer: a message with role tool")
    return plain, open_turn


def render_chat(
    tokenizer: Tokenizer, messages: list[Message], param: str = "messages"
) -> list[int]:
    """Render a chat up to the place where the assistant speaks, or goes on.

    Raises:
        APIError: the messages are no chat that waits for the assistant.
    """
    try:
        plain, open_turn = turns(messages)
        if not plain or plain[-1]["role"] != "user":
            raise ValueError("the last message must be a user's, or a tool's after one")
        ids = tokenizer.render_for_completion({"messages": plain})
    except (ValueError, TypeError) as error:
        raise APIError(400, str(error), "invalid_messages", param) from error
    for text, is_special, _ in content_segments(open_turn or []):
        ids += [tokenizer.encode_special(text)] if is_special else tokenizer.encode(text)
    return ids


# %%
# NBVAL_CHECK_OUTPUT
from nanochat_lib.serving.protocol import Message
from nanochat_lib.serving.prompts import render_chat

call = {"id": "c1", "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'}}
chat = [
    Message(role="user", content="6*7?"),
    Message(role="assistant", content="It is ", tool_calls=[call]),
    Message(role="tool", tool_call_id="c1", content="42"),
]
print(tokenizer.decode(render_chat(tokenizer, chat)))

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

from nanochat_lib.inference.forms import Forms
from nanochat_lib.inference.row import Form, Request
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import ChatRequest, CompletionRequest, Dials
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.serving.worker import Answering, Arrival, Draining, NoWorker, QueueFull
from nanochat_lib.tokenizer.tokenizer import Tokenizer

Noted = tuple[list[tuple[int, float]], bool]  # a token's alternatives, and whether it is a tool's
REASONS = {
    "stop": "stop",
    "length": "length",
    "loop": "length",
    "cancelled": "stop",
    "call": "tool_calls",
}


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
    call: str | None = None  # an expression that the caller shall work out
    reason: str | None = None


def make_requests(
    prompt: list[int],
    dials: Dials,
    defaults: Defaults,
    limit: int,
    alternatives: int | None,
    form: Form | None = None,
    param: str = "prompt",
) -> list[Request]:
    """Make the n requests of a call.

    Args:
        prompt: ids.
        dials: what the caller wants.
        defaults: what holds otherwise.
        limit: tokens of the context.
        alternatives: as in `Request`.
        form: as in `Request`.
        param: the field that a prompt too long stood in.

    Raises:
        APIError: the prompt leaves no room in the context.
    """
    if len(prompt) >= limit:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, the context {limit}: at least one must be left "
            "for the reply; make it shorter",
            "context_length_exceeded",
            param,
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
            form=form,
            return_calls=bool(getattr(dials, "tools", [])) and dials.tool_choice != "none",
        )
        for i in range(dials.n)
    ]


def asked_form(forms: Forms, body: ChatRequest | CompletionRequest) -> Form | None:
    """Return the form that an answer shall have.

    Raises:
        APIError: two are asked for, or one that cannot be made.
    """
    chosen, asked = body.structured_outputs, getattr(body, "response_format", None)
    asked = None if asked is None or asked.type == "text" else asked
    name = "structured_outputs" if asked is None else "response_format"
    if asked is not None and chosen is not None:
        message = "give response_format or structured_outputs, not both"
        raise APIError(400, message, "invalid_format", name)
    try:
        if asked is not None:
            schema = asked.json_schema.schema_ if asked.json_schema else {"type": "object"}
            return forms.json_schema(schema)
        if chosen is not None:
            return (
                forms.regex(chosen.regex) if chosen.choice is None else forms.choice(chosen.choice)
            )
    except ValueError as error:
        raise APIError(400, str(error), "invalid_format", name) from error
    return None


class Reply:
    """The choices of one call while they arrive."""

    def __init__(
        self,
        worker: Answering,
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
            APIError: the queue is full (429), the server is about to stop or nobody answers (503).
        """
        self.worker, self.requests, self.queue = worker, requests, asyncio.Queue()
        self.gone, self.started, self.first_seconds = gone, time.perf_counter(), None
        self.texts = [ReplyText(tokenizer, stops) for _ in requests]
        self.n_tokens, self.going = 0, set(range(len(requests)))
        try:
            self.tickets = worker.submit(requests, self.queue)
        except QueueFull:
            message = f"{worker.max_waiting} requests wait already: try again in a second"
            raise APIError(429, message, "queue_full", Retry_After="1") from None
        except Draining:
            message = "the server is about to stop: ask another one"
            raise APIError(503, message, "draining", Retry_After="5") from None
        except NoWorker as error:
            raise APIError(503, str(error), "no_worker", Retry_After="5") from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what arrives until every choice has ended; leave no request behind.

        Raises:
            APIError: the engine failed.
        """
        try:
            while self.going:
                arrival = await self.queue.get()
                if self.gone is not None and await self.gone():
                    return
                if arrival.index in self.going:
                    piece = self._take(arrival)
                    if piece.reason is not None:
                        self.going.discard(arrival.index)
                    yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Let the requests go that have not ended; calling it again does nothing."""
        self.worker.cancel([self.tickets[i] for i in self.going])
        self.going = set()

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
            piece.call = text.call if arrival.reason == "call" else None
            piece.text += text.finish()
        if text.stopped:
            piece.reason = "stop"
            self.worker.cancel([self.tickets[arrival.index]])
        piece.steps = text.steps[before:]
        return piece

    def usage(self) -> dict[str, Any]:
        """Count tokens, and those of the prompt that had been read for somebody else."""
        prompt = len(self.requests[0].prompt)
        shared = self.tickets[0].n_shared  # what the others share with this one is no saving
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": prompt + self.n_tokens,
            "prompt_tokens_details": {"cached_tokens": shared},
        }


# %% [markdown]
# ## The shape of an answer
#
# A stream is *server-sent events*: lines that begin with `data: `, an empty line after each, and `[DONE]` at the
# end. Tool steps that the server took itself are no part of OpenAI's form; they come as `tool_steps` beside the
# content, where its clients do not look. A call that is left to the caller has its place there: `tool_calls`.

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
from nanochat_lib.serving.prompts import CALCULATOR
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
        self.param = "messages" if self.chat else "prompt"
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

    def choice(self, piece: Piece) -> dict[str, Any]:
        """Write one whole choice, gathered into one piece."""
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.reason}
        choice["logprobs"] = self.logprobs(piece.noted) if piece.noted else None
        if not self.chat:
            return choice | {"text": piece.text}
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        if piece.steps:
            message["tool_steps"] = piece.steps
        if piece.call is not None:
            message |= {"content": piece.text or None, "tool_calls": [tool_call(piece.call)]}
        return choice | {"message": message}

    async def whole(self, reply: Reply) -> dict[str, Any]:
        """Gather all pieces into one answer."""
        choices = [self.choice(piece) for piece in await gather(reply)]
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
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.steps:
            delta["tool_steps"] = piece.steps
        if piece.call is not None:
            delta["tool_calls"] = [{"index": 0, **tool_call(piece.call)}]
        return choice | {"delta": delta}

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


async def gather(reply: Reply) -> list[Piece]:
    """Put the pieces of each choice together."""
    whole = [Piece(i) for i in range(len(reply.tickets))]
    async for piece in reply.pieces():
        choice = whole[piece.index]
        choice.text += piece.text
        choice.noted += piece.noted
        choice.steps += piece.steps
        choice.call, choice.reason = piece.call, piece.reason
    return whole


def tool_call(expression: str) -> dict[str, Any]:
    """Write a call of the calculator that the caller shall answer."""
    function = {"name": CALCULATOR, "arguments": json.dumps({"expression": expression})}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def event(data: dict[str, Any], name: str | None = None) -> str:
    """Write one server-sent event."""
    line = f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
    return line if name is None else f"event: {name}\n{line}"


# %% [markdown]
# ## The same answer as a response
#
# OpenAI's newer API calls it a *response*: a list of items that the model put out, each with its content, and a
# stream of named events that say which item grows. For text it is the same answer in a larger envelope. What is
# kept nowhere cannot be continued: a `previous_response_id` is refused, the caller sends what was said before.

# %%
#| default_exp serving.responses
# Answers in the form of OpenAI's responses.

# %%
#| export
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.formats import event, gather
from nanochat_lib.serving.protocol import (
    ChatRequest,
    JSONSchema,
    Message,
    ResponseFormat,
    ResponseRequest,
)
from nanochat_lib.serving.replies import Reply


# %%
#| export
def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a response's request asks for."""
    items = body.input
    if isinstance(items, str):
        messages = [Message(role="user", content=items)]
    else:
        messages = [Message(role=item.role, content=item.content) for item in items]
    if body.instructions is not None:
        messages = [Message(role="system", content=body.instructions), *messages]
    if not messages:
        raise APIError(400, "input: give a text, or at least one message", "invalid_input", "input")
    chosen, form = body.text.format if body.text else None, None
    if chosen is not None:
        named = {"name": chosen.name or "answer", "schema": chosen.schema_}
        schema = JSONSchema(**named) if chosen.type == "json_schema" else None
        form = ResponseFormat(type=chosen.type, json_schema=schema)
    dials = ("model", "temperature", "top_p", "seed", "stream")
    same = {name: getattr(body, name) for name in dials}
    longest = body.max_output_tokens
    return ChatRequest(messages=messages, max_tokens=longest, response_format=form, **same)


class ResponseForm:
    """Write the answer to a response's request."""

    def __init__(self, body: ResponseRequest) -> None:
        """Begin an answer."""
        self.body, self.created, self.n_events = body, int(time.time()), 0
        self.param = "input"
        self.id, self.item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"

    def message(self, text: str, status: str) -> dict[str, Any]:
        """Write the one item that is put out."""
        about = {"id": self.item, "type": "message", "role": "assistant", "status": status}
        return about | {"content": [self.part(text)] if status != "in_progress" else []}

    def part(self, text: str) -> dict[str, Any]:
        """Write a part of content."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def response(
        self, status: str, output: list[dict], usage: dict | None = None
    ) -> dict[str, Any]:
        """Write the whole object."""
        body = self.body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        about = {"id": self.id, "object": "response", "created_at": self.created, "status": status}
        about |= {"model": body.model, "output": output, "error": None, "incomplete_details": cut}
        about |= {
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "usage": usage,
        }
        about |= {"temperature": body.temperature, "top_p": body.top_p, "tools": []}
        about |= {"max_output_tokens": body.max_output_tokens, "truncation": "disabled"}
        format_of = body.text and body.text.format
        shown = (
            format_of.model_dump(by_alias=True, exclude_none=True)
            if format_of
            else {"type": "text"}
        )
        about |= {"text": {"format": shown}, "previous_response_id": None}
        return about | {"parallel_tool_calls": False, "tool_choice": "auto"}

    def finished(self, text: str, reason: str | None, reply: Reply) -> dict[str, Any]:
        """Write the object of an answer that has ended."""
        status = "incomplete" if reason == "length" else "completed"
        used = reply.usage()
        usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }
        return self.response(status, [self.message(text, status)], usage)

    async def whole(self, reply: Reply) -> dict[str, Any]:
        """Gather all pieces into one answer."""
        [piece] = await gather(reply)
        return self.finished(piece.text, piece.reason, reply)

    def named(self, kind: str, **more: Any) -> str:
        """Write an event of a response's stream."""
        self.n_events += 1
        return event({"type": kind, "sequence_number": self.n_events - 1, **more}, kind)

    async def stream(self, reply: Reply) -> AsyncIterator[str]:
        """Yield the events; an error becomes an event as well."""
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        begun, text, reason = self.response("in_progress", []), "", None
        try:
            yield self.named("response.created", response=begun)
            yield self.named("response.in_progress", response=begun)
            item = self.message("", "in_progress")
            yield self.named("response.output_item.added", output_index=0, item=item)
            yield self.named("response.content_part.added", **place, part=self.part(""))
            async for piece in reply.pieces():
                text, reason = text + piece.text, piece.reason
                if piece.text:
                    more = {"delta": piece.text, "logprobs": []}
                    yield self.named("response.output_text.delta", **place, **more)
            yield self.named("response.output_text.done", **place, text=text, logprobs=[])
            yield self.named("response.content_part.done", **place, part=self.part(text))
            found = self.finished(text, reason, reply)
            [item] = found["output"]
            yield self.named("response.output_item.done", output_index=0, item=item)
            yield self.named(f"response.{found['status']}", response=found)
        except APIError as error:
            about = error.body()["error"]
            yield self.named(
                "error", **{name: about[name] for name in ("code", "message", "param")}
            )


# %% [markdown]
# ## Recap
#
# Text goes out when it is whole and no stop string can begin in it. One thread owns the engine; callers get
# tokens through queues of their own. A full queue says so, a caller who leaves frees his row, a fault is an error
# object and not a silence. What does not fit is refused by name. And an answer has three shapes, written from
# the same pieces.
#
# The library now has `serving.reply`, `serving.worker`, `serving.protocol`, `serving.errors`, `serving.prompts`,
# `serving.replies`, `serving.formats` and `serving.responses`. The next workshop chapter serves them.
