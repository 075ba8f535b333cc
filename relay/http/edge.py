"""Around the Quart app, in plain ASGI: CORS on every answer, what no route ever sees, and the last place for a crash.

Here and not in the app, because it must also hold for what the app never sees (every `OPTIONS` request, known path or
not, is answered here) and for what it cannot survive (an error in its own handling of errors). A head with too many
lines, and a path that would read differently once decoded, are turned away before anything is made of them. The send of
the last body part is shielded one level further out, where the server is known.
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

# Apache's LimitRequestFields.
HEADER_LINES_MAX: Final = 100
# As for the first head of a connection, and what HTTP/2 clients are told. The parsers let more pass where it comes in
# one piece (h11) or small because compressed (h2).
HEAD_BYTES_MAX: Final = 16 << 10
# Of a header line: colon, blank, end of line.
_LINE_BYTES: Final = 4

_VARY: Final = b"vary"
_VARIES: Final = b"origin, access-control-request-method, access-control-request-headers"
_EXPOSE_ALL: Final = (b"access-control-expose-headers", b"*")
_PREFLIGHT: Final = ((b"access-control-allow-methods", b"*"), (b"access-control-allow-headers", b"*"))
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"

# Where a scope keeps what is to be done after its answer.
_ANSWERED: Final = "relay.answered"

log = structlog.get_logger(__name__)


def when_answered(scope: Any, call: Callable[[], None]) -> None:
    """Calls back when the client has the whole answer of this request, or will not get it: what the answer holds in
    memory is free then."""
    scope.setdefault(_ANSWERED, []).append(call)


class Edge:
    """Wraps an ASGI app; `origins` None = every origin is welcome, empty = none is."""

    def __init__(self, app: AsgiApp, origins: Iterable[str] | None = None) -> None:
        self._app = app
        self._origins = None if origins is None else frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope.get("http_version", "").startswith("1.") and _has_body(scope):
            receive, send = _telling_the_end(receive, send)
        if len(scope["headers"]) > HEADER_LINES_MAX:
            await self._refuse(scope, send, 431, "too many request headers")
        elif _head_bytes(scope) > HEAD_BYTES_MAX:
            await self._refuse(scope, send, 431, "request head too large")
        elif scope["method"] == "OPTIONS":
            await _answer(send, 200, [*self._allow(scope), (_VARY, _VARIES), *_PREFLIGHT], b"")
        elif scope["path"].startswith("//") or b"%2f" in (scope.get("raw_path") or b"").lower():
            # The router would drop the first slash, and the server has decoded the path: either would be served as
            # another path than the one that a proxy in front may have looked at.
            await _answer(send, 404, self._cors(scope, (), []), b"")
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        without_body = scope["method"] == "HEAD"
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": self._with_cors(scope, message.get("headers", ()))}
            elif without_body and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            log.error("a request crashed outside its route", path=scope.get("path"), exc_info=error)
            if not started:
                await self._refuse(scope, send, 500, INTERNAL_TEXT)
        finally:
            for call in scope.get(_ANSWERED, ()):
                call()

    async def _refuse(self, scope: MutableMapping[str, Any], send: Send, status: int, text: str) -> None:
        body = b"" if scope["method"] == "HEAD" else orjson.dumps(error_body(text))
        await _answer(send, status, [*self._cors(scope, (), []), (b"content-type", b"application/json")], body)

    def _with_cors(self, scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The answer's headers and ours. A route's own allowed origin wins: two values of it are as good as none."""
        rest: Headers = []
        varies: list[bytes] = []
        allowed: Headers = []
        for name, value in headers:
            match name.lower():
                case b"vary":
                    varies.append(value)
                case b"access-control-allow-origin":
                    allowed = [(_ALLOW_ORIGIN, value)]
                case _:
                    rest.append((name, value))
        return rest + self._cors(scope, varies, allowed)

    def _cors(self, scope: MutableMapping[str, Any], varies: Iterable[bytes], allowed: Headers) -> Headers:
        headers = [*(allowed or self._allow(scope)), (_VARY, b", ".join((_VARIES, *varies)))]
        return [*headers, _EXPOSE_ALL] if self._origins is None else headers

    def _allow(self, scope: MutableMapping[str, Any]) -> Headers:
        if self._origins is None:
            return [(_ALLOW_ORIGIN, b"*")]
        for name, value in scope["headers"]:
            if name.lower() == b"origin" and value in self._origins:
                return [(_ALLOW_ORIGIN, value)]
        return []


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return True
    return False


def _telling_the_end(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same, with `Connection: close` in an answer that begins before the body of its request was read.

    The server ends that connection, or the rest of the body would be taken for a request. A client that is not told
    sends its next one into it, and cannot know afterwards whether it was heard.
    """
    read = False

    async def receive_on() -> Message:
        nonlocal read
        message = await receive()
        read = read or not message.get("more_body", False)
        return message

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start" and not read:
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return receive_on, send_on


def _head_bytes(scope: MutableMapping[str, Any]) -> int:
    fields = sum(len(name) + len(value) + _LINE_BYTES for name, value in scope["headers"])
    return fields + len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
