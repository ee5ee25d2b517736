# Generated from chapters/98_server.py by `course build`; edit that file.
"""What every request passes: host, key, size, counting."""

import base64
import hmac

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.worker import Answering

__all__ = ["Metrics", "given_key", "Gate"]


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
