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
# The last chapter made answers. A server lets strangers in, and that is promises: only who may ask is heard, an
# error says what was wrong, a page cannot be made to act for somebody else, a stop loses nobody's answer. This
# workshop chapter keeps them one by one. You need the chapter `answers`; FastAPI and uvicorn do the HTTP. On a
# laptop it takes about 15 seconds.

# %%
import asyncio
import threading
import time

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# The toy of the last chapter, a model with random weights, serves for this one as well.

# %%
tokenizer = Tokenizer.train(["plain text"], vocab_size=256 + 9)
toy = GPT(GPTConfig(sequence_len=128, vocab_size=265, n_layer=2, n_embd=64))
for weight in toy.parameters():
    weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def run(coroutine):
    """Run a coroutine to its end, also where a notebook has a loop of its own."""
    result = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return result[0]


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
from nanochat_lib.serving.worker import Answering


# %%
#| export
class Metrics:
    """What the server counts, in a registry of its own."""

    def __init__(self, worker: Answering) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        common = {"registry": self.registry, "namespace": "nanochat"}
        self.requests = Counter(
            "requests", "requests by route and status", ["route", "status"], **common
        )
        self.tokens = Counter("tokens", "tokens read and written", ["kind"], **common)
        self.first = Histogram("first_token_seconds", "wait for the first token", **common)
        Gauge("waiting", "requests without a row", **common).set_function(lambda: worker.waiting)
        Gauge("rows", "replies in the making", **common).set_function(lambda: worker.n_rows)


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
import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from nanochat_lib.inference.forms import Forms
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.formats import Format
from nanochat_lib.serving.gate import Gate, Metrics
from nanochat_lib.serving.page import add_page
from nanochat_lib.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponseRequest,
    TokenizeRequest,
)
from nanochat_lib.serving.prompts import check_tools, render_chat
from nanochat_lib.serving.replies import Defaults, Reply, asked_form, make_requests
from nanochat_lib.serving.responses import ResponseForm, as_chat
from nanochat_lib.serving.worker import Answering


# %%
#| export
@dataclass(frozen=True)
class ServerSettings:
    """What a server is told beside its model."""

    model: str = "nanochat"
    key: str | None = None
    hosts: frozenset[str] | None = None
    max_bytes: int = 1_000_000
    defaults: Defaults = Defaults()
    inside: str | None = None  # the model as JSON, for the page


class EventStream(StreamingResponse):
    """Send server-sent events; whatever ends them, also before the first, `finish` is called."""

    def __init__(self, events: AsyncIterator[str], finish: Callable[[], None]) -> None:
        """Prepare the events; no buffer on the way shall hold them up."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, 200, headers, "text/event-stream")
        self.finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.finish()


class Service:
    """Answer what the routes are asked."""

    def __init__(self, worker: Answering, settings: ServerSettings) -> None:
        """Serve what a worker, or a pool of them, answers; it is started with the application."""
        self.settings, self.tokenizer, self.worker = settings, worker.tokenizer, worker
        self.limit, self.most = worker.limit, worker.max_rows
        ids = range(self.tokenizer.vocab_size)
        self.pieces = [readable(self.tokenizer.decode_bytes([i])) for i in ids]
        self.forms = Forms(worker.tokenizer)
        self.metrics = Metrics(self.worker)

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
        self,
        http: Request,
        body: ChatRequest | CompletionRequest,
        prompt: list[int],
        form: Format | ResponseForm,
    ) -> Response:
        """Answer a request, whole or as a stream, in a form."""
        if body.model != self.settings.model:
            message = f"there is no model {body.model!r} here, but {self.settings.model!r}"
            raise APIError(400, message, "model_not_found", "model")
        if body.n > self.most:
            raise APIError(400, f"n is {body.n}, at most {self.most} fit", "invalid_n", "n")
        self.check_tokens(body.logit_bias, "logit_bias")
        noted = body.logprobs
        if isinstance(body, ChatRequest):
            check_tools(body.tools)
            noted = body.top_logprobs if body.logprobs else None
        kept_to = await asyncio.to_thread(
            asked_form, self.forms, body
        )  # a large schema takes a while
        settings = self.settings
        about = (settings.defaults, self.limit, noted, kept_to, form.param)
        requests = make_requests(prompt, body, *about)
        gone = None if body.stream else http.is_disconnected  # a stream notices by itself
        reply = Reply(self.worker, self.tokenizer, requests, body.stops, gone)
        if body.stream:
            return EventStream(form.stream(reply), partial(self.finish, reply))
        try:
            return JSONResponse(await form.whole(reply))
        finally:
            self.finish(reply)

    def finish(self, reply: Reply) -> None:
        """Let go of what is left of a reply, and count it."""
        reply.close()
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

    # Without FastAPI's own pages on the API: they load their scripts from somebody else's server.
    pages = {"docs_url": None, "redoc_url": None}
    app, settings = FastAPI(title="nanochat", lifespan=lifespan, **pages), service.settings
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
        prompt = render_chat(service.tokenizer, body.messages)
        return await service.answer(http, body, prompt, Format(service.tokenizer, body))

    @app.post("/v1/completions")
    async def completions(http: Request, body: CompletionRequest) -> Response:
        prompt = service.text_prompt(body.prompt)
        return await service.answer(http, body, prompt, Format(service.tokenizer, body))

    @app.post("/v1/responses")
    async def responses(http: Request, body: ResponseRequest) -> Response:
        chat = as_chat(body)
        prompt = render_chat(service.tokenizer, chat.messages, "input")
        return await service.answer(http, chat, prompt, ResponseForm(body))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict:
        if body.messages is not None:
            tokens = render_chat(service.tokenizer, body.messages)
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
from functools import partial
from typing import Literal

from nanochat_lib.model.gpt import GPT
from nanochat_lib.serving.one_file import inside
from nanochat_lib.serving.child import load_member
from nanochat_lib.serving.pool import Pool
from nanochat_lib.serving.replies import Defaults
from nanochat_lib.serving.runs import find_run, last_stage
from nanochat_lib.serving.server import PatientServer, ServerSettings, Service
from nanochat_lib.serving.worker import Answering, Worker
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
    workers: int = 1
    """processes with an engine each, behind one queue; worker i takes GPU i where there are GPUs"""
    keep_mb: int = 256
    """memory for what past texts have left in the cache"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


def look_inside(model: GPT, tokenizer: Tokenizer, name: str) -> str | None:
    """Return a model as JSON for the page's own engine; None for one that would be slow there."""
    small = model.num_params() <= LARGEST_INSIDE
    return json.dumps(inside(model, tokenizer, name)) if small else None


def make_worker(
    config: ServeConfig, folder: Path, stage: str, tokenizer: Tokenizer, limit: int
) -> Answering:
    """Make the worker, or the pool, that answers; `limit` is the model's context in tokens."""
    rows, waiting = config.max_rows, config.max_waiting
    about = (folder, stage, config.device, rows, config.keep_mb, config.workers)
    if config.workers == 1:
        return Worker(load_member(*about, 0), waiting)
    make = partial(load_member, *about)
    return Pool(make, config.workers, tokenizer, limit, rows, waiting)


def serve(config: ServeConfig) -> int:
    """Serve until a signal comes; replies in the making are finished first.

    Returns:
        0, the exit code.

    Raises:
        ValueError: there is no such model, or the port is taken.
    """
    if config.workers < 1 or config.max_rows < 1:
        raise ValueError(
            f"{config.workers} workers, {config.max_rows} rows: need at least 1 of each"
        )
    folder = find_run(config.run, config.stage)
    stage = config.stage or last_stage(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model, _ = load_model(folder / stage, tokenizer)
    worker = make_worker(config, folder, stage, tokenizer, model.config.sequence_len)
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
        defaults=Defaults(config.temperature, config.top_k),
        inside=look_inside(model, tokenizer, folder.name),
    )
    server = PatientServer(Service(worker, settings))
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
from nanochat_lib.serving.worker import Worker

worker = Worker(Engine(toy, tokenizer, max_rows=8), max_waiting=4)
service = Service(worker, ServerSettings(model="toy"))
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
# A request passes the gate by its host, its key and its size. The page is text until a sanitizer has seen it, and a
# policy stands behind. A full queue says so at once, a signal lets replies end, and every error has one shape.
#
# The library now has `serving.gate`, `serving.page`, `serving.server` and `serving.serve`.
