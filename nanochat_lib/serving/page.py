# Generated from chapters/98_server.py by `course build`; edit that file.
"""The chat page, and the files it loads."""

import secrets

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from nanochat_lib.course.manifest import library_root
from nanochat_lib.serving.errors import APIError

__all__ = ["POLICY", "add_page"]

POLICY = (  # the page may run its own scripts and talk to its own server, and nothing else
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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
