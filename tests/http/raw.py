"""A request as the server hands it to the app, and the answer exactly as the app hands it back.

Quart's own test client is kind: it normalises paths, and gives every answer a type and a length.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
import trio

from tests.support.http import LOOPBACK


@dataclass
class RawAnswer:
    """`headers` in lower case, as sent: the same name may come twice."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only one of this name."""
        found = [value for each, value in self.headers if each == name]
        assert len(found) <= 1, found
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def ask(
    app: Any,
    method: str,
    target: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    reading: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
) -> RawAnswer:
    """`target` as on the request line. The body comes in one piece; its Content-Length is added if it is missing.
    `reading`: returns when the client takes the next piece of the answer."""
    sent = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    if body and not any(name == b"content-length" for name, _ in sent):
        sent.append((b"content-length", str(len(body)).encode()))
    raw_path, _, query = target.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "asgi": {"spec_version": "2.3", "version": "3.0"}, "extensions": {},
        "method": method, "scheme": "http", "path": unquote(raw_path), "raw_path": raw_path.encode(),
        "query_string": query.encode(), "root_path": "", "headers": [(b"host", b"localhost"), *sent], **LOOPBACK,
    }  # fmt: skip
    messages: list[Any] = []
    pieces = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if pieces:
            await trio.lowlevel.checkpoint()
            return pieces.pop()
        return await trio.sleep_forever()

    async def send(message: Any) -> None:
        await reading()
        messages.append(message)

    await app(scope, receive, send)
    start, *parts = messages
    assert start["type"] == "http.response.start"
    assert [part.get("more_body", False) for part in parts][-1:] == [False]
    shown = [(bytes(name).decode().lower(), bytes(value).decode()) for name, value in start["headers"]]
    return RawAnswer(start["status"], shown, b"".join(part.get("body", b"") for part in parts))
