"""One rule for every ASGI app that Hypercorn serves: the last message of an answer is always sent.

Hypercorn ends the request (arms the keep-alive timeout, or closes the connection) inside the `send` of the last body
message. Quart-Trio cancels the request's task as soon as its handler has returned. So without a shield that end is
never reached: idle connections live for ever, and each of them holds up the stop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

ASGIApp = Callable[..., Awaitable[None]]


def always_sent(app: ASGIApp) -> ASGIApp:
    """The app, with its last message shielded. Bounded by the deadline that the connection's stream has for a send."""

    async def wrapped(
        scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        async def send_whole(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with trio.CancelScope(shield=True):
                    await send(message)
            else:
                await send(message)

        await app(scope, receive, send_whole)

    return wrapped
