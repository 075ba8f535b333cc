"""Reading the head of a request and leaving it on the socket, so that whoever serves the connection finds it there.

Flows in: an accepted socket. Flows out: the head's bytes, or that there is nothing to serve. Runs in the connection's
task. Rules that keep a hostile client from costing more than its connection:

1. At most `bytes_max` bytes and `seconds`, however they arrive.
2. The socket wakes us only when there are more bytes than we have seen (SO_RCVLOWAT); peeked bytes keep it readable,
   so a plain wait for readability would spin.
3. A wake-up without a new byte means that the peer has ended its half: there will be no head.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from relay.websocket.head import head_end

__all__ = ["HeadTooLong", "peek_head"]

# Unix sockets know no low-water mark. Twenty milliseconds are felt by nobody and cost nothing.
POLL_SECONDS = 0.02


class HeadTooLong(Exception):
    """The head did not end within `bytes_max` bytes."""


async def peek_head(
    sock: trio.socket.SocketType, *, bytes_max: int, seconds: float, wait_stopped: Callable[[], Awaitable[object]]
) -> bytes | None:
    """The bytes up to and with the blank line; they stay unread. None if they do not come: too late, end of input,
    error, or the server stops while we wait.

    Raises HeadTooLong."""
    head: bytes | None = None
    too_long = False
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + seconds
        nursery.start_soon(_cancel_when, wait_stopped, nursery.cancel_scope)
        try:
            head = await _peek(sock, bytes_max)
        except HeadTooLong:
            too_long = True  # raised outside, or the nursery would wrap it into a group
        except OSError:
            head = None
        nursery.cancel_scope.cancel()
    if too_long:
        raise HeadTooLong
    return head


async def _cancel_when(wait_stopped: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait_stopped()
    scope.cancel()


async def _peek(sock: trio.socket.SocketType, bytes_max: int) -> bytes | None:
    polled = sock.family == getattr(socket, "AF_UNIX", None)
    seen = 0
    try:
        while True:
            data = await sock.recv(bytes_max, socket.MSG_PEEK)
            end = head_end(data, seen)
            if end is not None:
                return data[:end]
            if len(data) >= bytes_max:
                raise HeadTooLong
            if not data or (len(data) == seen and not polled):
                return None
            seen = len(data)
            if polled:
                await trio.sleep(POLL_SECONDS)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
                await trio.lowlevel.wait_readable(sock)
    finally:
        if seen and not polled:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
