"""COUNT (NIP-45): how many stored events a REQ of the same filters could show.

In: a parsed COUNT of an authenticated session. Out: `["COUNT",id,{"count":n}]`, or CLOSED with a text. The gates are
those of REQ, except that a channel which the caller may not read counts nothing instead of being refused. Nothing is
registered and nothing ended: a live subscription of the same id goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from relay.access.identity import Caller
from relay.nostr import messages
from relay.nostr.filter import p_gate_refused, subscription_channels
from relay.nostr.messages import CountMessage
from relay.query.conditions import Reach
from relay.query.count import count
from relay.websocket.reading import FAILURES, Refused, failure_text, readable, reader, still_readable

if TYPE_CHECKING:
    from relay.websocket.session import Session

P_GATED: Final = "restricted: p-gated kinds require #p tag matching your pubkey"


async def serve(session: Session, message: CountMessage) -> None:
    """Answers a COUNT. Raises trio.BrokenResourceError when the connection is ending."""
    try:
        answer = messages.count(message.sub_id, await _count(session, message))
    except Refused as refused:
        answer = messages.closed(message.sub_id, refused.text)
    except FAILURES as error:
        answer = messages.closed(message.sub_id, failure_text(error, "a COUNT"))
    await session.put(answer)


async def _count(session: Session, message: CountMessage) -> int:
    caller = reader(session)
    if subscription_channels(message.filters) is None and p_gate_refused(message.filters, caller.pubkey):
        raise Refused(P_GATED)
    while True:
        accessible = await readable(session, caller)
        number = await _count_in(session, message, caller, accessible)
        # What was lost meanwhile must not be in the answer, and it may have waited long for the store.
        if accessible <= await still_readable(session, caller):
            return number


async def _count_in(session: Session, message: CountMessage, caller: Caller, accessible: frozenset[str]) -> int:
    services, channels = session.services, subscription_channels(message.filters)
    reach = Reach(accessible, channels is None, channels)
    # As in a search: a token bound to channels finds global events only where it asks for them otherwise.
    searched = Reach(accessible, channels is None and caller.channel_ids is None, channels)
    filters = [(wanted, reach if wanted.search is None else searched) for wanted in message.filters]
    async with services.shares.turn(caller.pubkey, session.place):
        return await count(
            services.pool,
            filters,
            now=services.now_us() // 1_000_000,
            statement_seconds=services.settings.statement_seconds,
        )
