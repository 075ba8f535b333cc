"""REQ with `search` (NIP-50): an answer and its EOSE, no subscription.

In: the filters of a REQ, all of them with `search`, that passed the gates of `requests`. Out: events, the best first
within each filter and each event once, then EOSE.

Who may read what is asked again for every write, with no wait between the answer and the write: what a caller lost
while the store was searching is left out, and what has to wait for room is bound to its channel and withdrawn with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.nostr import messages
from relay.nostr.messages import ReqMessage, event_ws_frame
from relay.query.conditions import Reach
from relay.query.replay import Limits
from relay.query.search import hits
from relay.websocket.reading import batches, reader, still_readable

if TYPE_CHECKING:
    from relay.websocket.session import Session


async def answer(session: Session, request: ReqMessage, accessible: frozenset[str]) -> None:
    """Sends what the searches find in the `accessible` channels, then EOSE.

    Raises:
        Refused: The caller lost the right to read at all.
        FAILURES of `reading`: The store could not be asked.
        trio.BrokenResourceError: The connection is ending.
    """
    services, caller = session.services, reader(session)
    # A token that is bound to channels was not given for what stands outside of all of them.
    reach = Reach(accessible, global_events=caller.channel_ids is None)
    limits = Limits.from_settings(services.settings)
    prefix = messages.event_prefix(request.sub_id)
    sent: set[bytes] = set()
    for wanted in request.filters:
        async with services.shares.turn(caller.pubkey, session.place):
            rows = await hits(services.pool, wanted, reach, limits, now=services.now_us() // 1_000_000)
        fresh = [row for row in rows if row.id not in sent]
        sent.update(row.id for row in fresh)
        for batch in batches(fresh):
            still = await still_readable(session, caller)
            frames = [
                (event_ws_frame(prefix, row.json), row.channel_id)
                for row in batch
                if row.channel_id is None or row.channel_id in still
            ]
            if frames:
                await session.put_frames(frames)
    await session.put(messages.eose(request.sub_id))
