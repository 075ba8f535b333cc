"""The end of events that named it themselves (NIP-40 `expiration`).

Readers leave an event out from its second on, whether or not it was swept. The sweep makes that final, and puts right
what the event had changed. Run now and then by the reaper, as the work of an effect worker; any number of relays may
sweep one database.
"""

from __future__ import annotations

from typing import Final

from relay.audit.entry import Action
from relay.ingest.deletions import undo
from relay.ingest.effects import Effect
from relay.ingest.types import Outcome
from relay.nostr.event import load_event
from relay.store import deletions

EVENTS_MAX: Final = 500
"""A sweep's: as many as a batch of commits, so that nobody waits longer for a worker than for the commit task."""


async def sweep(effect: Effect) -> Outcome:
    """Deletes up to `EVENTS_MAX` events that have expired, the oldest first, each with an audit entry.

    The message of the outcome is their number; there may be more where it is `EVENTS_MAX`.
    """
    gone = await deletions.mark_expired(effect.con, effect.now, EVENTS_MAX)
    await undo(effect, gone)
    for event in gone:
        metadata = {"reason": "expired"}
        effect.audit(Action.EVENT_DELETED, load_event(event.signed_json), event.channel_id, metadata=metadata)
    return Outcome(True, str(len(gone)))
