"""REQ: who may subscribe to what, the stored events, EOSE, and the step to live ones.

In: a parsed REQ of an authenticated session. Out: stored events from `query`, EOSE, then those that came meanwhile;
from there the fan-out task delivers. Or CLOSED with a text, and then nothing is left of an older subscription of the
same name: a client that was refused must not go on getting events for filters that it no longer wants.

Theory. Between "may this key read the channel" and "tell this subscription when it may not any more" lies no
checkpoint: audiences are loaded first, then the check and the registration are one stretch. For a global subscription,
which may show stored events of many channels, the list of readable channels is asked again after the registration: a
removal before it shows in that list, a later one in `LiveSubscription.revoked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from relay.access.identity import Caller
from relay.access.scopes import MESSAGES_READ
from relay.errors import SHUTTING_DOWN, StoreError
from relay.fanout.hub import LiveSubscription, SubscriptionState
from relay.fanout.outbound import Frame
from relay.nostr import messages
from relay.nostr.filter import p_gate_refused, subscription_channels
from relay.nostr.messages import ReqMessage, event_ws_frame
from relay.query.replay import Limits, Pages, Row, pages
from relay.query.sql import Reach
from relay.store.failures import STORE_FAILURES
from relay.store.snapshot import Snapshot

if TYPE_CHECKING:
    from relay.websocket.session import Session

log = structlog.get_logger(__name__)

NO_SCOPE: Final = "restricted: insufficient scope"
TOO_MANY: Final = "error: too many subscriptions"
DATABASE: Final = "error: database error"
NOT_MEMBER: Final = "restricted: not a channel member"
P_GATED: Final = "restricted: p-gated events require #p matching your pubkey"
SEARCH: Final = "unsupported: filters with search are not supported yet"

# Stored events leave in writes of about this size: one system call for a hundred events, and small enough that what
# waits for room is soon reached by a removal.
WRITE_BYTES: Final = 64 << 10

# Of all subscriptions of a connection together, in values of filters and entries of the index: some 25 MB. A thousand
# subscriptions with a message full of ids each would be half a gigabyte. (Five hundred lists of 250 contacts fit.)
COST_MAX: Final = 1 << 17

FAILURES: Final = (*STORE_FAILURES, StoreError, trio.TooSlowError)


class _Refused(Exception):
    """The REQ ends with CLOSED and this text, after a NOTICE where one is due."""

    def __init__(self, text: str, *, notice: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.notice = notice


async def serve(session: Session, request: ReqMessage) -> None:
    """Answers a REQ to its EOSE or CLOSED. Raises trio.BrokenResourceError when the connection is ending."""
    hub = session.services.hub
    try:
        subscription, reach = await _subscribe(session, request)
        await _replay(session, subscription, reach)
    except _Refused as refused:
        hub.unsubscribe(session, request.sub_id)
        if refused.notice:
            await session.put(messages.notice(refused.text))
        await session.put(messages.closed(request.sub_id, refused.text))
    except FAILURES as error:
        log.error("a subscription could not be answered", error=repr(error))
        hub.unsubscribe(session, request.sub_id)
        await session.put(messages.closed(request.sub_id, DATABASE))


# -- may it ------------------------------------------------------------------------------------------------------------


async def _subscribe(session: Session, request: ReqMessage) -> tuple[LiveSubscription, Reach]:
    """Checks in the contract's order, and registers. Raises `_Refused`."""
    services, caller = session.services, session.caller
    assert caller is not None
    if services.draining():
        raise _Refused(SHUTTING_DOWN.text)
    if not caller.has(MESSAGES_READ):
        raise _Refused(NO_SCOPE, notice=True)
    services.hub.unsubscribe(session, request.sub_id)
    if services.hub.subscription_count(session) >= services.settings.max_subscriptions:
        raise _Refused(TOO_MANY)
    readable = await _readable(session, caller)
    channels = subscription_channels(request.filters)
    # Before the search check: a search must not find what a subscription may not show.
    if channels is None and p_gate_refused(request.filters, caller.pubkey):
        raise _Refused(P_GATED)
    if any(wanted.search is not None for wanted in request.filters):
        raise _Refused(SEARCH)
    if channels is None:
        subscription = _register(session, request, None)
        return subscription, Reach(readable & await _readable(session, caller))
    await services.hub.watch(sorted(channels & readable))
    open_to_us = frozenset(each for each in channels & readable if services.hub.may_receive(session, each))
    if not open_to_us:
        raise _Refused(NOT_MEMBER)
    return _register(session, request, open_to_us), Reach(open_to_us, global_events=False, channels=open_to_us)


async def _readable(session: Session, caller: Caller) -> frozenset[str]:
    accessible = await session.services.directory.accessible(caller.pubkey)
    return accessible if caller.channel_ids is None else accessible & caller.channel_ids


def _register(session: Session, request: ReqMessage, channels: frozenset[str] | None) -> LiveSubscription:
    prefix = messages.event_prefix(request.sub_id)
    subscription = LiveSubscription(session, request.sub_id, request.filters, channels, prefix)
    hub = session.services.hub
    if hub.index.cost(session) + subscription.cost > COST_MAX:
        raise _Refused(TOO_MANY)
    hub.subscribe(subscription)
    return subscription


# -- stored events -----------------------------------------------------------------------------------------------------


async def _replay(session: Session, subscription: LiveSubscription, reach: Reach) -> None:
    services = session.services
    limits = Limits.from_settings(services.settings)
    found = pages(services.pool, subscription.filters, reach, limits)
    async for rows in found:
        await _send(session, subscription, rows)
        if subscription.state is SubscriptionState.CLOSED:
            return  # evicted: its CLOSED is on the way, and an EOSE behind it would belong to nothing
    if subscription.state is SubscriptionState.CLOSED:
        return
    await session.put(messages.eose(subscription.sub_id))
    await _go_live(session, subscription, found)


async def _send(session: Session, subscription: LiveSubscription, rows: Sequence[Row]) -> None:
    """Rows as frames. Access is looked at for each write, with no checkpoint between the look and the write; what has
    to wait for room is bound to its channel and purged with it."""
    for batch in _batches(rows):
        frames = _frames(subscription, batch)
        if frames:
            await session.outbound.put_many(frames)


def _frames(subscription: LiveSubscription, rows: Sequence[Row]) -> list[Frame]:
    if subscription.state is SubscriptionState.CLOSED:
        return []
    prefix, revoked = subscription.prefix, subscription.revoked
    return [
        (event_ws_frame(prefix, signed_json), channel_id)
        for _, signed_json, channel_id, _ in rows
        if channel_id not in revoked
    ]


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    start = size = 0
    for end, row in enumerate(rows, 1):
        size += len(row.json)
        if size >= WRITE_BYTES:
            yield rows[start:end]
            start, size = end, 0
    if start < len(rows):
        yield rows[start:]


async def _go_live(session: Session, subscription: LiveSubscription, found: Pages) -> None:
    """Hands over what came during the replay. No checkpoint between the step and the write, so there has to be room
    first: frames that wait for it would be overtaken by the events after them."""
    outbound = session.outbound
    while (queued := outbound.statistics()).queued_bytes or queued.waiting_puts:
        await outbound.wait_send_all_might_not_block()
    # Where no filter asked the store, nothing was shown, and all that came is news.
    snapshot = found.snapshot or Snapshot(0, 0, frozenset())
    frames = session.services.hub.go_live(subscription, snapshot)
    if frames:
        await outbound.put_many(frames)
