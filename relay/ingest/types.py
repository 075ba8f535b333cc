"""The words that the steps of ingest share: doors, admissions, outcomes, tickets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from relay.access.identity import Caller
from relay.audit.entry import Entry
from relay.audit.queue import AuditQueueClosed, Producer
from relay.errors import Refusal
from relay.nostr.event import Event
from relay.store.threads import ThreadPlace


class Door(Enum):
    """Where an event came in; two kinds may come only through one of them."""

    WEBSOCKET = auto()
    HTTP = auto()


class Route(Enum):
    """What has to happen with an admitted event."""

    PLAIN = auto()
    """Stored with many others in one transaction."""
    EFFECT = auto()
    """Stored together with what it changes, in a transaction of its own."""
    EPHEMERAL = auto()
    """Delivered and forgotten."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An event that may go on.

    Attributes:
        channel_id: The channel it belongs to, None = global.
        member: The key whose membership the store checks once more; None where membership does not matter.
        touches_ttl: The channel is ephemeral and lives longer because of this event.
        time_us: When it was admitted, microseconds since the epoch: the time of its audit entry.
        started: The same moment by `time.perf_counter`, to measure from.
        thread: Where it stands in a thread; None: it answers nothing.
    """

    event: Event
    caller: Caller
    channel_id: str | None
    route: Route
    member: str | None
    touches_ttl: bool
    time_us: int
    started: float = field(default_factory=time.perf_counter, compare=False)
    thread: ThreadPlace | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the `accepted` and `message` of an OK; `refusal` tells HTTP which status to give."""

    accepted: bool
    message: str
    refusal: Refusal | None = None

    @classmethod
    def refused(cls, refusal: Refusal) -> Outcome:
        return cls(False, refusal.text, refusal)


STORED = Outcome(True, "")
DUPLICATE = Outcome(True, "duplicate:")


class Ticket(Protocol):
    """Where an outcome goes. `resolve` is called once, by a root task, in commit order, and must not block.

    After all tickets of a batch, `flush_replies` is called once for each distinct `owner`, so that the answers of one
    connection leave in one write.
    """

    owner: Any

    def resolve(self, outcome: Outcome) -> None: ...


async def hand_over(producer: Producer, entries: Sequence[Entry]) -> None:
    """Gives committed entries to the audit worker, after everybody has been answered; waits while its queue is full.

    A worker that is stopping takes no more: the outbox holds them already, and the next start chains them.
    """
    if not entries:
        return
    with suppress(AuditQueueClosed):
        await producer.send(entries)
