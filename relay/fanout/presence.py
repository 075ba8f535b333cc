"""Who says that he is there: the last status of each key, for as long as it was not taken back and is fresh.

In: the content of presence events (kind 20001) of authenticated keys. Out: the statuses of the keys that somebody asks
for. In memory only and at most one entry a key; the hub forgets a key with its last connection. Nobody owns a task:
what is out of date is passed over when it is asked for and dropped when something new comes. `clock` gives seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import orjson

__all__ = ["STATUS_BYTES_MAX", "Presence", "status_of"]

STATUS_BYTES_MAX: Final = 128
"""The original's bound; what clients send is a word."""

OFFLINE: Final = "offline"


class Presence:
    """The statuses by key. `seconds`: how long one lasts without being said again."""

    __slots__ = ("_clock", "_entries", "_seconds")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        # (when it ends, status). All last equally long, so the oldest is always in front.
        self._entries: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        """Entries kept, those included that have ended unnoticed."""
        return len(self._entries)

    def update(self, pubkey: str, content: str) -> None:
        """Takes what a presence event of this key says: a status, or that it is gone."""
        now = self._clock()
        self._entries.pop(pubkey, None)
        while self._entries and next(iter(self._entries.values()))[0] <= now:
            self._entries.popitem(last=False)
        status = status_of(content)
        if status != OFFLINE:
            self._entries[pubkey] = (now + self._seconds, status)

    def status(self, pubkeys: Iterable[str]) -> dict[str, str]:
        """The fresh ones among these keys, with what they said. The others are offline."""
        now = self._clock()
        found = {}
        for pubkey in pubkeys:
            entry = self._entries.get(pubkey)
            if entry is not None and entry[0] > now:
                found[pubkey] = entry[1]
        return found

    def clear(self, pubkey: str) -> None:
        """The key is gone. Harmless where it never was there."""
        self._entries.pop(pubkey, None)


def status_of(content: str) -> str:
    """The content itself, or the `status` of a JSON object; cut to 128 bytes of UTF-8, never inside a character."""
    status = content
    if content.startswith("{"):
        try:
            said = orjson.loads(content)
        except orjson.JSONDecodeError:
            said = None
        if type(said) is dict and type(said.get("status")) is str:
            status = said["status"]
    # A character has at most four bytes, so there is no need to encode a long text whole.
    return status[:STATUS_BYTES_MAX].encode()[:STATUS_BYTES_MAX].decode(errors="ignore")
