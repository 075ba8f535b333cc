"""Every way in which HTTP says no, and the envelope it says it in.

Three forms: `{"error": text}`; `{"error": code, "message": text}`; and, for requests that are not even well-formed
(query, body, size), a sentence as plain text, as the original's web framework wrote it and its clients know it.
"""

from __future__ import annotations

from typing import Final

import orjson
from quart import Response

from relay.errors import Refusal, RefusalClass

INTERNAL_TEXT: Final = "internal server error"
SHUTTING_DOWN_TEXT: Final = "shutting down"


class ApiError(Exception):
    """A no that the client reads in the JSON envelope; `message` makes it the form with a code."""

    def __init__(self, status: int, error: str, message: str | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.message = message


class NotWellFormed(ApiError):
    """A request that is refused before anybody looks at who sent it; read as plain text."""


def json_response(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, content_type="application/json")


def error_body(error: str, message: str | None = None) -> dict[str, str]:
    return {"error": error} if message is None else {"error": error, "message": message}


def error_response(error: ApiError) -> Response:
    if isinstance(error, NotWellFormed):
        return Response(error.error, error.status, content_type="text/plain; charset=utf-8")
    return json_response(error_body(error.error, error.message), error.status)


def from_refusal(refusal: Refusal) -> ApiError:
    """The status belongs to the class of the refusal; what went wrong inside is told to nobody."""
    if refusal.kind is RefusalClass.ERROR:
        return ApiError(refusal.kind.http_status, INTERNAL_TEXT)
    return ApiError(refusal.kind.http_status, refusal.text.removeprefix("error: "))
