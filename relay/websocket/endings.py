"""How a WebSocket connection ends: Close codes, reasons, and the label under which the end is counted.

Codes are those of RFC 6455 §7.4.1 and the IANA registry. A client that keeps to them knows what to do: with 1012 and
1013 it comes back (after a while), with 1008 and 1009 it has to do something differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.access.token_watch import Why

# A Close payload has at most 125 bytes, two of them the code.
REASON_BYTES_MAX: Final = 123


@dataclass(frozen=True, slots=True)
class Ending:
    """`label` goes to `sprout_ws_closes_total`. `abrupt`: what waits for the client is not worth waiting for."""

    code: int
    reason: str
    label: str
    abrupt: bool = False

    def __post_init__(self) -> None:
        assert len(self.reason.encode()) <= REASON_BYTES_MAX


AUTH_TIMEOUT: Final = Ending(1008, "authentication timeout", "auth_timeout")
TOO_BIG: Final = Ending(1009, "message too big", "too_big")
FRAGMENTS: Final = Ending(1008, "too many fragments", "too_big", abrupt=True)
INTERNAL_ERROR: Final = Ending(1011, "internal error", "error")
# Going away, as a browser tab that closes: nobody is there to read it, most likely.
PING_TIMEOUT: Final = Ending(1001, "ping timeout", "pings", abrupt=True)
# Not 1008: the client did nothing wrong. "Try again later" makes it come back and ask for what it has missed.
SLOW_CONSUMER: Final = Ending(1013, "too slow", "slow", abrupt=True)
# Not 1013: coming back with the same credential would not help.
IDENTITY: Final = {why: Ending(1008, why.value, f"token_{why.name.lower()}") for why in Why}
SHUTDOWN: Final = Ending(1012, "restarting", "shutdown")


def ordered(code: int, reason: str) -> Ending:
    """The end of all connections, because the relay stops (1012) or crashed (anything else)."""
    label = SHUTDOWN.label if code == SHUTDOWN.code else INTERNAL_ERROR.label
    return Ending(code, reason, label)


def slow(reason: str) -> Ending:
    """An end because the client did not keep up, with a sentence of its own."""
    return Ending(SLOW_CONSUMER.code, reason, SLOW_CONSUMER.label, abrupt=True)
