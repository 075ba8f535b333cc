"""What was refused, counted for the audit log.

A refusal must never cost more than the action that was refused, so nothing is written for it alone: refusals are
counted by (action, who, minute) and the counts ride in a later batch. Bounded: a flood of addresses makes one line.
"""

from __future__ import annotations

from uuid import uuid4

from relay.audit.entry import Action, Entry, new_entry

KEYS_MAX = 1000
OVERFLOW = "others"


class Notes:
    """Counts until `take` turns finished minutes into entries."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, Action, str, str], int] = {}

    def add(self, action: Action, who: str, reason: str, time_us: int) -> None:
        """Counts one refusal. `who`: a key or an address; `reason`: a fixed text, never a client's."""
        minute = time_us // 60_000_000
        key = (minute, action, who, reason)
        if key not in self._counts and len(self._counts) >= KEYS_MAX:
            key = (minute, action, OVERFLOW, reason)
        self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, time_us: int, *, everything: bool = False) -> list[Entry]:
        """One entry for each key of a minute that is over; of every minute at the end. One still to come is over,
        too: the clock was set back, and nobody knows when it comes again."""
        current = time_us // 60_000_000
        due = [key for key in self._counts if everything or key[0] != current]
        entries = []
        for key in due:
            minute, action, who, reason = key
            metadata = {"minute": minute * 60, "count": self._counts.pop(key), "reason": reason}
            if len(who) != 64:
                metadata["from"] = who
            entries.append(
                new_entry(
                    action,
                    time_us=time_us,
                    uuid=str(uuid4()),
                    actor=who if len(who) == 64 else None,
                    metadata=metadata,
                )
            )
        return entries
