"""NIP-10: which event an event answers, as its marked `e` tags say.

Pure: tags go in, ids come out. Positional `e` tags, which NIP-10 has deprecated, are mentions here. Whether what is
named exists, and whether it is the thread that it claims to be, is asked where events are admitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relay.nostr.ids import parse_hex64


@dataclass(frozen=True, slots=True)
class Markers:
    """The ids that are marked `root` and `reply`, lowercase hex."""

    root: str | None = None
    reply: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: the event that it answers and the thread that it says it belongs to."""

    parent: str
    root: str


def markers(tags: Iterable[Sequence[str]]) -> Markers:
    """The last valid mark of each sort counts: `["e", <64 hex>, <relay>, "root" or "reply"]`."""
    root = reply = None
    for tag in tags:
        if tag[0] == "e" and len(tag) >= 4 and tag[3] in ("root", "reply"):
            event_id = parse_hex64(tag[1])
            if event_id is None:
                continue
            if tag[3] == "root":
                root = event_id
            else:
                reply = event_id
    return Markers(root, reply)


def reply_of(tags: Iterable[Sequence[str]]) -> Reply | None:
    """What is answered, None if nothing is: a `root` alone only says what the event is about. A `reply` alone answers
    the start of a thread."""
    found = markers(tags)
    return None if found.reply is None else Reply(found.reply, found.root or found.reply)


def is_broadcast(tags: Iterable[Sequence[str]]) -> bool:
    """Whether a reply is to be shown in the channel too, and not only in its thread (`["broadcast", "1"]`)."""
    return any(tag[0] == "broadcast" and len(tag) > 1 and tag[1] == "1" for tag in tags)
