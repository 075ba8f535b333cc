"""Reading the head of a connection's first request.

In: an accepted socket. Out: the bytes that came, up to the end of the head and whatever was sent behind it, or that
there is nothing to serve. Runs in the connection's task. A hostile client costs no more than its connection: at most
`bytes_max` bytes and `seconds`, however they arrive. Whoever serves the connection is given what was read, as if it
were still to come.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from relay.websocket.head import head_end

__all__ = ["HeadTooLong", "read_head"]

# How often a silent connection looks whether the server stops; a task beside it would cost every other connection more.
SLICE_SECONDS = 0.25


class HeadTooLong(Exception):
    """The head did not end within `bytes_max` bytes."""


async def read_head(
    sock: trio.socket.SocketType, *, bytes_max: int, seconds: float, stopping: Callable[[], bool]
) -> tuple[bytes, bytes] | None:
    """The bytes up to and with the blank line, and those behind it. None if they do not come: too late, end of input,
    error, or the server stops while we wait.

    Raises HeadTooLong."""
    deadline = trio.current_time() + seconds
    data, descriptor = b"", sock.fileno()
    try:
        while await _wait_readable(descriptor, deadline, stopping):
            more = os.read(descriptor, bytes_max - len(data))
            seen, data = len(data), data + more
            end = head_end(data, seen)
            if end is not None:
                return data[:end], data[end:]
            if len(data) >= bytes_max:
                raise HeadTooLong
            if not more:
                return None
    except (OSError, trio.ClosedResourceError):
        pass
    return None


async def _wait_readable(descriptor: int, deadline: float, stopping: Callable[[], bool]) -> bool:
    while not stopping() and (left := deadline - trio.current_time()) > 0:
        with trio.move_on_after(min(left, SLICE_SECONDS)):
            await trio.lowlevel.wait_readable(descriptor)
            return True
    return False
