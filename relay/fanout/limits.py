"""The values of the way out: what may wait for a connection, why it ended, what its owner may read about it.

No behaviour here; `writer` enforces the bounds and `outbound` is what callers use.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CloseReason", "Limit", "OutboundLimits", "OutboundStatistics"]


class CloseReason(Enum):
    """Why the connection cannot go on."""

    SLOW_CONSUMER = "slow_consumer"  # a bound was crossed; `OutboundStatistics.limit` says which
    PEER_GONE = "peer_gone"  # the socket broke


class Limit(Enum):
    """Which bound was crossed."""

    SLOTS = "slots"
    BYTES = "bytes"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class OutboundLimits:
    """Bounds of what may wait for one connection.

    `slots`: data frames; the original's queue holds 1000.
    `bytes`: unsent bytes in our memory, beside the kernel's buffer; while none waits, a frame of any size is taken.
    `stall_seconds`: how long frames may wait while the peer acknowledges nothing."""

    slots: int = 1000
    bytes: int = 1 << 20
    stall_seconds: float = 5.0

    def __post_init__(self) -> None:
        assert self.slots > 0
        assert self.bytes > 0
        assert self.stall_seconds > 0


@dataclass(frozen=True, slots=True)
class OutboundStatistics:
    """State of one connection's way out. `backlogs` counts how often the kernel's buffer was full."""

    state: str
    queued_frames: int
    queued_bytes: int
    waiting_puts: int
    backlogs: int
    purged_frames: int
    last_progress: float
    limit: Limit | None
