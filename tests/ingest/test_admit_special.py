"""Admission of what is not simply a message: gift wraps, protected, expiring and ephemeral events."""

from __future__ import annotations

import dataclasses
import time

import pytest
import trio

from relay.access.scopes import STORED
from relay.errors import Refusal, RefusalClass
from relay.ingest.admit import Admitter, refers
from relay.ingest.types import Door, Route
from relay.nostr.event import Event
from tests.support.admission import (
    ALICE,
    ARCHIVED,
    BOB,
    CAROL,
    DELETED,
    EPHEMERAL,
    NOW,
    NOWHERE,
    OPEN,
    PLAIN,
    PRIVATE,
    PROXY,
    SHORT,
    UNKNOWN,
    admitted,
    an_event,
    caller,
    h,
    refused,
    to,
)
from tests.support.core import running_core

# -- gift wraps, protected and expiring events -------------------------------------------------------------------------


async def test_a_gift_wrap_is_signed_by_nobody_and_dated_back(admitter: Admitter) -> None:
    for at in (0, NOW - 2 * 86_400, NOW + 900):
        wrap = await admitted(admitter, ALICE.sign(1059, "sealed", [h(PRIVATE)], at=at))
        assert (wrap.channel_id, wrap.member, wrap.route) == (None, None, Route.PLAIN)
    ahead = ALICE.sign(1059, "sealed", at=NOW + 901)
    assert await refused(admitter, ahead) == "invalid: event timestamp too far from server time"
    http = await refused(admitter, ALICE.sign(1059), ALICE.caller, Door.HTTP)
    assert http == "invalid: kind 1059 is only accepted via WebSocket"
    forged = ALICE.sign(1059, "sealed")
    forged.content = "opened"
    assert (await refused(admitter, forged)).startswith("invalid: invalid event id: computed ")
    forged = ALICE.sign(1059, "sealed")
    forged.sig = BOB.sign(1059, "sealed").sig
    assert await refused(admitter, forged) == "invalid: invalid schnorr signature"


async def test_the_audit_log_does_not_tell_who_sent_a_gift_wrap(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        now = int(time.time())
        wrap = ALICE.sign(1059, "sealed", [["p", CAROL.pubkey]], at=now)
        assert (await core.submit(BOB, wrap)).message == ""
        assert (await core.submit(BOB, BOB.sign(1, "open", at=now))).message == ""
        with trio.fail_after(5):
            while await core.pool.fetchval("SELECT count(*) FROM audit_outbox"):
                await trio.sleep(0.01)
        rows = await core.pool.fetch("SELECT kind, actor, event_id FROM audit_log ORDER BY seq")
    assert [tuple(row.values())[:2] for row in rows] == [(1059, None), (1, BOB.pubkey)]
    assert rows[0]["event_id"] == wrap.id


@pytest.mark.parametrize("kind", [9, 20002, 1059])
async def test_a_protected_event_is_published_by_its_author_only(admitter: Admitter, kind: int) -> None:
    event = an_event(kind, OPEN, ALICE, ["-"])
    assert (await admitted(admitter, event, ALICE.caller)).event is event
    for who in (PROXY.caller, *([BOB.caller] if kind == 1059 else [])):
        found = await admitter.admit(event, who, Door.WEBSOCKET)
        assert found == Refusal("restricted: this event may only be published by its author", RefusalClass.AUTH)


@pytest.mark.parametrize("kind", [*sorted(STORED), 20001, 20002])
async def test_no_kind_is_accepted_after_its_time(admitter: Admitter, kind: int) -> None:
    assert await refused(admitter, an_event(kind, OPEN, BOB, ["expiration", str(NOW)])) == "invalid: event has expired"
    await admitted(admitter, an_event(kind, OPEN, BOB, ["expiration", str(NOW + 1)]))
    await admitted(admitter, an_event(kind, OPEN, BOB, ["expiration", "yesterday"]))


# -- ephemeral events --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EPHEMERAL)
async def test_each_ephemeral_kind(admitter: Admitter, kind: int) -> None:
    event = an_event(kind, OPEN)
    found = await admitted(admitter, event, caller(BOB, "messages:write"))
    assert (found.channel_id, found.route) == (None if kind == 20001 else OPEN, Route.EPHEMERAL)
    await admitted(admitter, event, PROXY.caller)
    for lacking in (caller(BOB, "messages:read"), dataclasses.replace(BOB.caller, scopes=frozenset())):
        assert await refused(admitter, event, lacking) == "restricted: insufficient scope for ephemeral events"
    assert (await admitted(admitter, an_event(kind))).channel_id is None
    old = BOB.sign(kind, "x" * 300_000, [h(OPEN), ["imeta"], [*NOWHERE, "", "reply"]], at=1)
    assert (await admitted(admitter, old)).thread is None
    http = await refused(admitter, an_event(kind), door=Door.HTTP)
    assert http == (
        "invalid: kind 20001 is only accepted via WebSocket" if kind == 20001 else "restricted: unknown event kind"
    )


@pytest.mark.parametrize("kind", [kind for kind in EPHEMERAL if kind != 20001])
async def test_ephemeral_events_enter_channels_as_others_do(admitter: Admitter, kind: int) -> None:
    not_member = "restricted: not a channel member"
    for channel, text in (
        (PRIVATE, not_member),
        (UNKNOWN, not_member),
        (DELETED, not_member),
        (ARCHIVED, "invalid: channel is archived"),
    ):
        assert await refused(admitter, an_event(kind, channel)) == text
    # A bridge is no member: what is never stored could not be held against it.
    assert await refused(admitter, an_event(kind, PRIVATE), PROXY.caller) == not_member
    await admitted(admitter, an_event(kind, PRIVATE, ALICE), ALICE.caller)
    tied = caller(BOB, channel_ids={OPEN})
    await admitted(admitter, an_event(kind, OPEN), tied)
    assert await refused(admitter, an_event(kind, SHORT), tied) == (
        "restricted: token does not have access to this channel"
    )
    assert await refused(admitter, an_event(kind), tied) == (
        "restricted: channel-scoped tokens cannot publish global events"
    )


async def test_presence_belongs_to_no_channel(admitter: Admitter) -> None:
    for who in (BOB.caller, caller(BOB, channel_ids={OPEN}), caller(BOB, channel_ids=set())):
        for channel in (None, OPEN, PRIVATE, UNKNOWN):
            assert (await admitted(admitter, an_event(20001, channel), who)).channel_id is None


# -- what waits for others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "waits"),
    [
        *((an_event(kind, OPEN), True) for kind in STORED if kind not in PLAIN),
        *((an_event(kind, OPEN), True) for kind in EPHEMERAL),
        *((an_event(kind, OPEN), kind in (40003, 45002)) for kind in PLAIN),
        (an_event(9, OPEN, BOB, to("message", "", "reply")), True),
        (an_event(1, None, BOB, to("message", "", "reply")), False),
        (an_event(9, OPEN, BOB, ["p", BOB.pubkey]), False),
    ],
)
def test_what_refers_to_another_event_waits_for_it(event: Event, waits: bool) -> None:
    assert refers(event) is waits
