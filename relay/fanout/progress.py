"""What the kernel knows about a peer that takes its time: how many written bytes it has not acknowledged.

Flows in: a socket's file descriptor. Flows out: a number that falls while the peer reads, however slowly. Where the
platform cannot say it is constant, and only a write that succeeds counts as progress.
"""

from __future__ import annotations

import array
import fcntl
import sys
import termios

__all__ = ["unacknowledged_bytes"]

_LINUX = sys.platform == "linux"


def unacknowledged_bytes(descriptor: int) -> int:
    """Bytes that the peer has not acknowledged, sent or not (SIOCOUTQ); 0 where it is unknown."""
    if not _LINUX or descriptor < 0:
        return 0
    answer = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, answer)  # the same number as SIOCOUTQ on Linux
    except OSError:
        return 0
    return answer[0]
