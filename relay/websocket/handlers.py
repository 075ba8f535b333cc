"""What each message of a client does: EVENT, AUTH and CLOSE here, REQ in `requests`, COUNT in `counts`.

In: the text of one message and the session that it came on. Out: replies, in order. A handler returns when the next
message may be read: a plain EVENT before its OK is known, everything else after all that came before it.

Limits, in the order in which they are asked: messages of the connection (a message that has no answer of its own to say
so in just waits), then events or requests of the key, then a place among those that are being handled.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import structlog
import trio

from relay.access.authenticate import AuthRefusal
from relay.access.identity import Caller
from relay.audit.entry import Action, Entry, new_entry
from relay.errors import INTERNAL_ERROR, SHUTTING_DOWN, Refusal
from relay.ingest import measure
from relay.ingest.admit import refers
from relay.ingest.types import Admission, Door, Outcome, Route
from relay.nostr import messages
from relay.nostr.event import Event
from relay.nostr.messages import AuthMessage, CloseMessage, CountMessage, EventMessage, InvalidMessage, ReqMessage
from relay.nostr.nip42 import AuthCause
from relay.nostr.session import Verb
from relay.store.failures import STORE_FAILURES
from relay.websocket import counts, endings, requests
from relay.websocket.limits import EVENTS, HANDLERS, MESSAGES, REQUESTS, Excess

if TYPE_CHECKING:
    from relay.websocket.session import Session

log = structlog.get_logger(__name__)

_UNPROVED: Final = frozenset(cause.value for cause in AuthCause)
# A token that is missing a rounding error must not make the loop spin.
SHORTEST_SLEEP_SECONDS: Final = 0.001
_FAILED: Final = Outcome.refused(INTERNAL_ERROR)


async def handle(session: Session, text: str) -> None:
    """One message, whatever it says. Raises trio.BrokenResourceError when the connection is ending."""
    in_time = session.messages.take()
    try:
        message = messages.parse_client_message(text, filters_max=session.services.settings.max_filters)
    except InvalidMessage as invalid:
        if not in_time:
            await _slow_down(session)
        await session.put(messages.notice(invalid.notice))
        return
    if isinstance(message, EventMessage):
        await session.replies.wait_room()
        if in_time:
            await _publish(session, message.event)
        else:
            _turn_away(session, message.event, MESSAGES)
        return
    await session.replies.wait_empty()
    if not in_time:
        if isinstance(message, ReqMessage | CountMessage):
            await _close(session, message, MESSAGES)
            return
        await _slow_down(session)
    refusal = session.state.refuse(message)
    if refusal is not None:
        for payload in refusal:
            await session.put(payload)
        return
    match message:
        case AuthMessage(event=event):
            await _log_in(session, event)
        case ReqMessage() | CountMessage():
            await _request(session, message)
        case CloseMessage(sub_id=sub_id):
            session.services.hub.unsubscribe(session, sub_id)
            await session.put(messages.closed(sub_id, ""))


async def ignore(session: Session) -> None:
    """A message that is no text gets no answer, but it was one."""
    if not session.messages.take():
        await _slow_down(session)


async def _slow_down(session: Session) -> None:
    """Until the connection may send again. Nothing is read meanwhile, so the client is held back by its own socket."""
    session.services.limits.count(MESSAGES.what, session.name)
    while not session.messages.take():  # noqa: ASYNC110 - time is all that is waited for
        await trio.sleep(max(session.messages.seconds_left(), SHORTEST_SLEEP_SECONDS))


# -- EVENT -------------------------------------------------------------------------------------------------------------


async def _publish(session: Session, event: Event) -> None:
    """Answers one EVENT, or leaves its answer to the commit task."""
    caller, limits = session.caller, session.services.limits
    if caller is None:
        _refuse(session, event, Refusal.auth(session.state.check(Verb.EVENT).refusal))
        return
    if not limits.take_event(caller):
        _turn_away(session, event, EVENTS)
        return
    if refers(event):
        # What it refers to may be among the EVENTs that are not committed yet: a reaction to the message just sent.
        await session.replies.wait_empty()
    try:
        await _decide(session, event, caller)
    except STORE_FAILURES as error:
        log.error("an event could not be decided", event=event.id, error=repr(error))
        session.replies.answer(event.id, _FAILED)
    except trio.ClosedResourceError:  # the queues of ingest closed meanwhile
        session.replies.answer(event.id, Outcome.refused(SHUTTING_DOWN))


async def _decide(session: Session, event: Event, caller: Caller) -> None:
    ingest, place = session.services.ingest, session.place
    if not place.take_nowait() and not await place.take():
        _turn_away(session, event, HANDLERS)
        return
    try:
        admission = await ingest.admit(event, caller, Door.WEBSOCKET)
        if isinstance(admission, Refusal):
            session.replies.answer(event.id, Outcome.refused(admission))
            return
        if admission.route is not Route.PLAIN:
            session.replies.answer(event.id, await ingest.perform(admission))
            return
    finally:
        place.leave()
    # Without a place: a full queue holds back who sends, by not reading, and nobody else.
    await _enqueue(session, admission)


async def _enqueue(session: Session, admission: Admission) -> None:
    slot = session.replies.open(admission.event.id)
    try:
        await session.services.ingest.enqueue(admission, slot)
    except BaseException:
        session.replies.withdraw(slot)  # nobody will ever resolve it
        raise


def _turn_away(session: Session, event: Event, excess: Excess) -> None:
    """The OK of an EVENT that was one too many. `wait_room` first."""
    session.services.limits.count(excess.what, session.name)
    _refuse(session, event, excess.refusal)


def _refuse(session: Session, event: Event, refusal: Refusal) -> None:
    """The OK of an EVENT that ingest never sees, and its place in the metrics."""
    measure.received(event.kind)
    measure.rejected(refusal)
    session.replies.answer(event.id, Outcome.refused(refusal))


# -- REQ and COUNT -----------------------------------------------------------------------------------------------------


async def _request(session: Session, message: ReqMessage | CountMessage) -> None:
    caller = session.caller
    assert caller is not None, "the state lets none through before the login"
    if not session.services.limits.take_request(caller):
        await _close(session, message, REQUESTS)
        return
    if not session.place.take_nowait() and not await session.place.take():
        await _close(session, message, HANDLERS)
        return
    try:
        if isinstance(message, ReqMessage):
            await requests.serve(session, message)
        else:
            await counts.serve(session, message)
    finally:
        session.place.leave()


async def _close(session: Session, message: ReqMessage | CountMessage, excess: Excess) -> None:
    """The CLOSED of a REQ or COUNT that was one too many. As after every refusal, an older subscription of the same
    name is over: the client has taken it for replaced."""
    session.services.limits.count(excess.what, session.name)
    if isinstance(message, ReqMessage):
        session.services.hub.unsubscribe(session, message.sub_id)
    await session.put(messages.closed(message.sub_id, excess.refusal.text))


# -- AUTH --------------------------------------------------------------------------------------------------------------


async def _log_in(session: Session, event: Event) -> None:
    """The connection's one attempt."""
    services = session.services
    now_us = services.now_us()
    found = await services.authenticator.websocket(event, challenge=session.state.challenge, now=now_us // 1_000_000)
    if isinstance(found, AuthRefusal):
        session.state.failed()
        # A key that proved nothing is only a claim, and must not be blamed; then the address is all that is known.
        who = session.peer if found.cause in _UNPROVED else event.pubkey
        services.ingest.note(Action.AUTH_FAILURE, who, found.cause)
        log.info("authentication refused", cause=found.cause, peer=session.peer)
        await session.put(messages.ok(event.id, False, found.text))
        return
    try:
        await services.ingest.record([_success(found, session.peer, now_us)])
    except (*STORE_FAILURES, trio.ClosedResourceError) as error:
        # A login that the audit log does not know must not have happened. The client comes back.
        log.error("a login could not be recorded", error=repr(error))
        session.state.failed()
        await session.put(messages.ok(event.id, False, INTERNAL_ERROR.text))
        session.end(endings.INTERNAL_ERROR)
        return
    session.authenticated(found)
    await session.put(messages.ok(event.id, True, ""))


def _success(caller: Caller, peer: str, now_us: int) -> Entry:
    metadata = {"door": "websocket", "method": caller.method.value, "peer": peer}
    if caller.token_id is not None:
        metadata["token_id"] = caller.token_id
    return new_entry(
        Action.AUTH_SUCCESS, time_us=now_us, uuid=str(uuid.uuid4()), actor=caller.pubkey, metadata=metadata
    )  # fmt: skip
