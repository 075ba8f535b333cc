"""REQ: who may subscribe to what, the stored events, EOSE, and the step to live ones.

In: a parsed REQ of an authenticated session. Out: stored events from `query`, EOSE, then those that came meanwhile;
from there the fan-out task delivers. Or CLOSED with a text, or the answer to a search (`searches`). Whichever it is, it
ends an older subscription of the same name: a client must not go on getting events for filters that it has replaced.

Theory. Between "may this key read the channel" and "tell this subscription when it may not any more" lies no
checkpoint: audiences are loaded first, then the check and the registration are one stretch. For a global subscription,
which may show stored events of many channels, the list of readable channels is asked again after the registration: a
removal before it shows in that list, a later one in `LiveSubscription.revoked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from relay.fanout.hub import LiveSubscription, SubscriptionState
from relay.fanout.outbound import Frame
from relay.nostr import messages
from relay.nostr.filter import p_gate_refused, subscription_channels
from relay.nostr.messages import ReqMessage, event_ws_frame
from relay.query.conditions import Reach
from relay.query.replay import Limits, Pages, Row, pages
from relay.store.snapshot import Snapshot
from relay.websocket import searches
from relay.websocket.reading import FAILURES, Refused, batches, failure_text, readable, reader

if TYPE_CHECKING:
    from relay.websocket.session import Session

TOO_MANY: Final = "error: too many subscriptions"
NOT_MEMBER: Final = "restricted: not a channel member"
P_GATED: Final = "restricted: p-gated events require #p matching your pubkey"
MIXED: Final = "error: mixed search and non-search filters not supported"

# Of all subscriptions of a connection together, in values of filters and entries of the index: some 25 MB. A thousand
# subscriptions with a message full of ids each would be half a gigabyte. (Five hundred lists of 250 contacts fit.)
COST_MAX: Final = 1 << 17


async def serve(session: Session, request: ReqMessage) -> None:
    """Answers a REQ to its EOSE or CLOSED. Raises trio.BrokenResourceError when the connection is ending."""
    hub = session.services.hub
    try:
        accessible = await _admit(session, request)
        if _is_search(request):
            await searches.answer(session, request, accessible)
        else:
            subscription, reach = await _subscribe(session, request, accessible)
            await _replay(session, subscription, reach)
    except Refused as refused:
        hub.unsubscribe(session, request.sub_id)
        if refused.notice:
            await session.put(messages.notice(refused.text))
        await session.put(messages.closed(request.sub_id, refused.text))
    except FAILURES as error:
        hub.unsubscribe(session, request.sub_id)
        await session.put(messages.closed(request.sub_id, failure_text(error, "a REQ")))


# -- may it ------------------------------------------------------------------------------------------------------------


async def _admit(session: Session, request: ReqMessage) -> frozenset[str]:
    """What holds for subscriptions and searches alike, in the contract's order; the channels that the caller may read.

    The gate stands before the search: that must not find what a subscription may not show. Raises `Refused`.
    """
    services, caller = session.services, reader(session)
    services.hub.unsubscribe(session, request.sub_id)
    if services.hub.subscription_count(session) >= services.settings.max_subscriptions:
        raise Refused(TOO_MANY)
    accessible = await readable(session, caller)
    if subscription_channels(request.filters) is None and p_gate_refused(request.filters, caller.pubkey):
        raise Refused(P_GATED)
    return accessible


def _is_search(request: ReqMessage) -> bool:
    """Whether all filters are searches. Raises `Refused` where only some are."""
    searched = [wanted.search is not None for wanted in request.filters]
    if any(searched) and not all(searched):
        raise Refused(MIXED)
    return any(searched)


async def _subscribe(
    session: Session, request: ReqMessage, accessible: frozenset[str]
) -> tuple[LiveSubscription, Reach]:  # fmt: skip
    """Registers, and says what of the store may be shown. Raises `Refused`."""
    services, caller = session.services, reader(session)
    channels = subscription_channels(request.filters)
    if channels is None:
        subscription = _register(session, request, None)
        return subscription, Reach(accessible & await readable(session, caller))
    await services.hub.watch(sorted(channels & accessible))
    open_to_us = frozenset(each for each in channels & accessible if services.hub.may_receive(session, each))
    if not open_to_us:
        raise Refused(NOT_MEMBER)
    return _register(session, request, open_to_us), Reach(open_to_us, global_events=False, channels=open_to_us)


def _register(session: Session, request: ReqMessage, channels: frozenset[str] | None) -> LiveSubscription:
    prefix = messages.event_prefix(request.sub_id)
    subscription = LiveSubscription(session, request.sub_id, request.filters, channels, prefix)
    hub = session.services.hub
    if hub.index.cost(session) + subscription.cost > COST_MAX:
        raise Refused(TOO_MANY)
    hub.subscribe(subscription)
    return subscription


# -- stored events -----------------------------------------------------------------------------------------------------


async def _replay(session: Session, subscription: LiveSubscription, reach: Reach) -> None:
    services = session.services
    limits = Limits.from_settings(services.settings)
    now = services.now_us() // 1_000_000
    found = pages(services.pool, subscription.filters, reach, limits, now=now)
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
    for batch in batches(rows):
        frames = _frames(subscription, batch)
        if frames:
            await session.put_frames(frames)


def _frames(subscription: LiveSubscription, rows: Sequence[Row]) -> list[Frame]:
    if subscription.state is SubscriptionState.CLOSED:
        return []
    prefix, revoked = subscription.prefix, subscription.revoked
    return [
        (event_ws_frame(prefix, signed_json), channel_id)
        for _, signed_json, channel_id, _ in rows
        if channel_id not in revoked
    ]


async def _go_live(session: Session, subscription: LiveSubscription, found: Pages) -> None:
    """Hands over what came during the replay. No checkpoint between the step and the write, so there has to be room
    first: frames that wait for it would be overtaken by the events after them."""
    outbound = session.outbound
    while (queued := outbound.statistics()).queued_bytes or queued.waiting_puts:
        async with session.place.aside():
            await outbound.wait_send_all_might_not_block()
    # Where no filter asked the store, nothing was shown, and all that came is news.
    snapshot = found.snapshot or Snapshot(0, 0, frozenset())
    frames = session.services.hub.go_live(subscription, snapshot)
    if frames:
        await session.put_frames(frames)
