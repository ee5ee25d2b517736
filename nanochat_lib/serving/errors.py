# Generated from chapters/98_answers.py by `course build`; edit that file.
"""Errors in the shape of OpenAI's API."""

from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

__all__ = ["APIError"]


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
