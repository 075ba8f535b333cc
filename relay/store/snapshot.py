"""What one PostgreSQL snapshot shows, decided outside the server.

A stored-events replay and the live fan-out meet at a snapshot: what it shows has been sent from the store, everything
else comes live. Both sides know the transaction that stored an event, so comparing two numbers is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

_WRAP = 1 << 32
# A row's xmin has 32 bits and stays readable after freezing, so "later" can only be trusted close to the snapshot.
_NEAR = 1 << 24


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`pg_current_snapshot()`: transactions below `xmin` are over, from `xmax` on unseen, `in_progress` undecided."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """From the text form `xmin:xmax:xip,xip`.

        Raises:
            ValueError: It is not that form.
        """
        xmin, xmax, xips = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xip) for xip in xips.split(",") if xip))

    def shows(self, xid: int) -> bool:
        """Whether a row of the committed transaction `xid` (64 bits) is visible."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.in_progress)

    def shows_row(self, xmin32: int) -> bool:
        """The same for a row that was read in a later snapshot, by its system column `xmin` (32 bits)."""
        ahead = (xmin32 - self.xmax) % _WRAP
        if ahead < _NEAR:
            return False
        return all(xid % _WRAP != xmin32 for xid in self.in_progress)


def full_xid(xmin32: int, xmax: int) -> int:
    """The 64 bits of a row's system column `xmin`; `xmax` is that of a snapshot that shows the row."""
    return xmax - (xmax - xmin32) % _WRAP
