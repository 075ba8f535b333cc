"""Events of the relay's own that belong to no channel and change nothing: stored, audited and delivered like any other.

In: an event signed by the relay. Out: whether it is stored. What the relay says about a change is not here: that is
stored in the transaction of the change (relay/ingest/group_state.py).
"""

from __future__ import annotations

from functools import partial

from relay.ingest.effects import Effect, Ended
from relay.ingest.group_state import store_relay_event
from relay.ingest.pipeline import Ingest
from relay.ingest.types import DUPLICATE, STORED, Outcome
from relay.nostr.event import Event


async def publish(ingest: Ingest, event: Event) -> bool:
    """Store `event` in a transaction of its own, by the effect workers; True also where it was stored before.

    Cancellation: the caller stops waiting, the transaction goes its way.
    """
    outcome = await ingest.transact(partial(_store, event=event), actor=event.pubkey)
    return outcome.accepted


async def _store(effect: Effect, *, event: Event) -> Outcome:
    if not await store_relay_event(effect, event, None):
        raise Ended(DUPLICATE)
    return STORED
