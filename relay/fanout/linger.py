"""Closing a socket without losing what was written last.

A socket that is closed while unread input waits makes the kernel send a reset, and the reset can overtake the last
bytes written: the peer sees an error in place of the Close frame or the refusal. So: say that nothing follows, read on
for a moment, then close. (nginx calls it lingering close.)
"""

from __future__ import annotations

import trio

__all__ = ["linger"]

# Enough for a peer that is there to read an answer; nobody else is worth a task for longer.
LINGER_SECONDS = 0.5
LINGER_BYTES_MAX = 1 << 20


async def linger(stream: trio.SocketStream) -> None:
    """End our half, then discard input until the peer ends its half, or for 0.5 s, or 1 MiB. Does not close.

    Cancellation: at once; the caller closes in its `finally`."""
    left = LINGER_BYTES_MAX
    with trio.move_on_after(LINGER_SECONDS):
        try:
            await stream.send_eof()
            while left > 0:
                received = len(await stream.receive_some(16384))
                if not received:
                    return
                left -= received
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            return  # it broke, or another task reads and will see the end itself
