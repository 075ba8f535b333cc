"""The two small listeners beside the port: health for orchestrators, metrics for Prometheus.

In: connections to a port of its own. Out: what a small ASGI app answers, through Hypercorn's connection class, one task
a connection. No WebSockets, no admission, no shared queue: they answer while the main port is overloaded or stopping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from relay.errors import ConfigError
from relay.last_message import always_sent
from relay.websocket.plain import HttpStream

STALL_SECONDS = 5.0  # for a scraper that stops reading; its next attempt is a new connection
STOP_SECONDS = 0.5

log = structlog.get_logger(__name__)


async def open_listeners(host: str, port: int, variable: str) -> list[trio.SocketListener]:
    """Take the port. Raises ConfigError, which names the setting `variable`."""
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host's
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{variable}: cannot listen on {host}:{port}: {reason}. Choose another, or 0 for none."
        ) from error


async def serve(
    app: Any,
    listeners: list[trio.SocketListener],
    stopping: Callable[[], bool],
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Owns the listeners; an error of one connection ends there.

    Args:
        stopping: From when it is true, a client that does not read is no longer waited for.
    """
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    context = WorkerContext(None)

    async def answer(stream: trio.SocketStream) -> None:
        bounded: Any = HttpStream(stream, stopping=stopping, stall_seconds=STALL_SECONDS, stop_seconds=STOP_SECONDS)
        try:
            await TCPServer(_only_http(app), config, context, ConnectionState({}), bounded)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* Exception as group:
            log.warning("a health or metrics connection failed", exc_info=group)

    await trio.serve_listeners(answer, listeners, task_status=task_status)


def _only_http(app: Any) -> ASGIWrapper:
    whole = always_sent(app)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await whole(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1002})

    return ASGIWrapper(guarded)
