"""Around the Quart app, in plain ASGI: CORS on every answer, and the last place where a crash can be contained.

Here and not in the app, because it must also hold for what the app never sees (every `OPTIONS` request, known path or
not, is answered here) and for what it cannot survive (an error in its own handling of errors). The send of the last
body part is shielded one level further out, where the server is known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson
import structlog

from relay.http.refusals import INTERNAL_TEXT, error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[..., Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_VARY: Final = (b"vary", b"origin, access-control-request-method, access-control-request-headers")
_EXPOSE_ALL: Final = (b"access-control-expose-headers", b"*")
_PREFLIGHT: Final = ((b"access-control-allow-methods", b"*"), (b"access-control-allow-headers", b"*"))
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"

log = structlog.get_logger(__name__)


class Edge:
    """Wraps an ASGI app; `origins` empty = every origin is welcome."""

    def __init__(self, app: AsgiApp, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await _answer(send, 200, [*self._allow(scope), _VARY, *_PREFLIGHT], b"")
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        cors = [*self._allow(scope), _VARY, *([] if self._origins else [_EXPOSE_ALL])]
        without_body = scope["method"] == "HEAD"
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # A route may allow every origin for itself; two values of this header are as good as none.
                own = [header for header in message.get("headers", ()) if header[0].lower() != _ALLOW_ORIGIN]
                message = {**message, "headers": [*own, *cors]}
            elif without_body and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            log.error("a request crashed outside its route", path=scope.get("path"), exc_info=error)
            if not started:
                body = orjson.dumps(error_body(INTERNAL_TEXT))
                await _answer(send, 500, [*cors, (b"content-type", b"application/json")], body)

    def _allow(self, scope: MutableMapping[str, Any]) -> Headers:
        if not self._origins:
            return [(_ALLOW_ORIGIN, b"*")]
        for name, value in scope["headers"]:
            if name.lower() == b"origin" and value in self._origins:
                return [(_ALLOW_ORIGIN, value)]
        return []


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
