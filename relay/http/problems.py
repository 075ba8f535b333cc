"""Refusals as problem details (RFC 9457), for the routes that the original of this contract did not have.

In: the answers of a blueprint, whoever made them: its routes, the checks before them, the handlers of errors. Out:
every no among them as `application/problem+json`. Its `error` is the text that stands in the envelope of the older
routes, so that a client that reads only this key can talk to both; `detail` explains it where there is more to say.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import orjson
from quart import Blueprint, Response

MEDIA_TYPE: Final = "application/problem+json"
# No page explains these problems further; then the title is that of the status, says the RFC.
_TYPE: Final = "about:blank"


def answer_with_problems(routes: Blueprint) -> None:
    """From now on the refusals of these routes are problem details."""
    routes.after_request(as_problem)


async def as_problem(response: Response) -> Response:
    """The response itself, with another body where it is a refusal. Other headers (`Retry-After`) stay."""
    if response.status_code < 400 or response.mimetype == MEDIA_TYPE:
        return response
    body = await response.get_data(as_text=False)
    response.set_data(orjson.dumps(problem(response.status_code, _read(response.mimetype, body))))
    response.content_type = MEDIA_TYPE
    return response


def problem(status: int, said: dict[str, Any]) -> dict[str, Any]:
    """A problem of what the envelope says: `error`, perhaps `message`, perhaps more."""
    title = HTTPStatus(status).phrase
    found = {"type": _TYPE, "title": title, "status": status, "error": said.pop("error", title)}
    if (detail := said.pop("message", None)) is not None:
        found["detail"] = detail
    return found | said


def _read(mimetype: str | None, body: bytes) -> dict[str, Any]:
    if mimetype == "application/json":
        said = orjson.loads(body)
        assert isinstance(said, dict), "every envelope is an object"
        return said
    text = body.decode(errors="replace").strip()
    return {"error": text} if text else {}
