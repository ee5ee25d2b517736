# Generated from chapters/98_server.py by `course build`; edit that file.
"""The server: OpenAI's API over HTTP."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
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
from nanochat_lib.serving.prompts import check_tools, render_chat
from nanochat_lib.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponseRequest,
    TokenizeRequest,
)
from nanochat_lib.serving.replies import Defaults, Reply, asked_form, make_requests
from nanochat_lib.serving.responses import ResponseForm, as_chat
from nanochat_lib.serving.worker import Answering

__all__ = [
    "ServerSettings",
    "EventStream",
    "Service",
    "create_app",
    "add_answers",
    "readable",
    "add_information",
    "handle_errors",
    "PatientServer",
]


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
