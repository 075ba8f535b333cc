"""Every way in which HTTP says no, and the envelope it says it in.

Three forms: `{"error": text}`; `{"error": code, "message": text}`; and, for requests that are not even well-formed
(query, body, size), a sentence as plain text, as the original's web framework wrote it and its clients know it.
"""

from __future__ import annotations

from typing import Final

import orjson
from quart import Response

from relay.errors import STORE_UNAVAILABLE, Refusal, RefusalClass

INTERNAL_TEXT: Final = "internal server error"
SHUTTING_DOWN_TEXT: Final = "shutting down"
UNAVAILABLE_TEXT: Final = "temporarily unavailable"
# With every 503: about as long as a restarted database or a full pool needs.
RETRY_SECONDS: Final = 2


class ApiError(Exception):
    """A no that the client reads in the JSON envelope; `message` makes it the form with a code.

    `retry_after_seconds` goes into the body, where the original's clients read it, and into the header of that name.
    """

    def __init__(
        self, status: int, error: str, message: str | None = None, *, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class NotWellFormed(ApiError):
    """A request that is refused before anybody looks at who sent it; read as plain text."""


def json_response(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, content_type="application/json")


def error_body(error: str, message: str | None = None) -> dict[str, str]:
    return {"error": error} if message is None else {"error": error, "message": message}


def error_response(error: ApiError) -> Response:
    if isinstance(error, NotWellFormed):
        return Response(error.error, error.status, content_type="text/plain; charset=utf-8")
    body: dict[str, str | int] = {**error_body(error.error, error.message)}
    seconds = error.retry_after_seconds
    if seconds is not None:
        body["retry_after_seconds"] = seconds
    elif error.status == 503:
        seconds = RETRY_SECONDS
    response = json_response(body, error.status)
    if seconds is not None:
        response.headers["Retry-After"] = str(seconds)
    return response


def unavailable() -> ApiError:
    """The store could not be asked, or gave up: not the client's fault, and worth another try."""
    return ApiError(503, UNAVAILABLE_TEXT)


def from_refusal(refusal: Refusal) -> ApiError:
    """The status belongs to the class of the refusal; what went wrong inside is told to nobody."""
    if refusal.kind is RefusalClass.ERROR:
        return ApiError(refusal.kind.http_status, INTERNAL_TEXT)
    if refusal == STORE_UNAVAILABLE:
        return unavailable()
    return ApiError(refusal.kind.http_status, refusal.text.removeprefix("error: "))
