"""Kind 9005, and what readers see of a channel after it."""

from __future__ import annotations

import time

from relay.ingest.types import Admission, Door
from relay.nostr.filter import parse_filter
from relay.query.conditions import Reach
from relay.query.count import count
from relay.query.replay import Limits, Pages
from relay.query.search import hits
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, running_core
from tests.support.deleting import (
    OTHER_CHANNEL,
    at,
    audited,
    delete,
    delete_in_group,
    live,
    publish,
    reactions,
    say,
)


async def test_owners_delete_what_others_wrote_and_the_channel_hears_of_it(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.add(ALICE, CAROL, "admin")
        for person in (ALICE, CAROL, BOB):
            message = await say(core, BOB, person.pubkey)
            deletion = person.sign(9005, tags=[["h", CHANNEL], ["e", message.id]])
            await publish(core, person, deletion)
            assert not await live(core, message)
            assert (deletion.id, {"target": message.id}) in await audited(core)
            told = await core.pool.fetchval("SELECT content FROM events WHERE content LIKE $1", f"%{message.id}%")
            assert told == (f'{{"type":"message_deleted","actor":"{person.pubkey}","target_event_id":"{message.id}"}}')
            # The same event once more is no fault of whoever sends it.
            assert (await core.submit(person, deletion)).message == "duplicate:"
        assert len(await audited(core)) == 3


async def test_what_a_9005_may_name(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.create(ALICE, OTHER_CHANNEL)
        message, gone, mine = await say(core, ALICE), await say(core, ALICE, "gone"), await say(core, BOB)
        elsewhere, note = await say(core, BOB, channel=OTHER_CHANNEL), await publish(core, BOB, BOB.sign(1))
        assert await delete(core, ALICE, ["e", gone.id]) == ""
        for tags, text in [
            ([], "missing e tag for target event"),
            ([["a", f"0:{BOB.pubkey}:"]], "missing e tag for target event"),
            ([["e", "nonsense"]], "missing e tag for target event"),
            ([["e", "ff" * 32]], "target event not found"),
            ([["e", gone.id]], "target event not found"),
            ([["e", elsewhere.id]], "target event belongs to a different channel"),
            ([["e", note.id]], "target event has no channel"),
            ([["e", message.id]], "must be event author or channel owner/admin"),
            ([["e", message.id], ["e", mine.id]], "must be event author or channel owner/admin"),
            (
                [["e", mine.id], ["e", "nonsense"]],
                "deletion events must reference exactly one target via e or a tag (got e=2, a=0)",
            ),
            (
                [["e", mine.id], ["a", "nonsense"]],
                "deletion events must reference exactly one target via e or a tag (got e=1, a=1)",
            ),
        ]:
            assert await delete_in_group(core, BOB, *tags) == f"invalid: {text}"
        assert (await core.submit(BOB, BOB.sign(9005, tags=[["e", mine.id]]))).message == (
            "invalid: channel-scoped events must include an h tag"
        )
        assert 9005 not in await core.kinds()


async def test_strangers_and_archived_channels(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        message = await say(core, ALICE)
        assert await delete_in_group(core, BOB, ["e", message.id]) == "restricted: not a channel member"
        deletion = ALICE.sign(9005, tags=[["h", CHANNEL], ["e", message.id]])
        admission = await core.ingest.admit(deletion, ALICE.caller, Door.WEBSOCKET)
        assert isinstance(admission, Admission)
        await core.pool.execute("UPDATE channels SET archived_at = now()")
        assert (await core.ingest.perform(admission)).message == "invalid: channel is archived"
        await core.pool.execute("UPDATE channels SET archived_at = NULL, deleted_at = now()")
        assert (await core.ingest.perform(admission)).message == "invalid: channel not found"
        assert await live(core, message)


async def test_a_9005_takes_a_reaction_back(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, BOB)
        reaction = await publish(core, BOB, BOB.sign(7, "+", [["e", message.id]]))
        assert await delete_in_group(core, ALICE, ["e", reaction.id]) == ""
        assert await reactions(core) == 0


async def readable(core: Core, wanted: dict[str, object]) -> list[str]:
    """Ids that a REQ of Alice's would be sent, in no order; COUNT must agree with it."""
    filters, now = [parse_filter(wanted)], int(time.time())
    reach = Reach(frozenset({CHANNEL}))
    pages = Pages(core.pool, filters, reach, Limits(), now)
    sent = [row.id.hex() async for page in pages for row in page]
    assert await count(core.pool, [(filters[0], reach)], now=now, statement_seconds=5) == len(sent)
    return sorted(sent)


async def found(core: Core, text: str) -> list[str]:
    rows = await hits(
        core.pool, parse_filter({"search": text}), Reach(frozenset({CHANNEL})), Limits(), now=int(time.time())
    )
    return [row.id.hex() for row in rows]


async def test_what_is_gone_is_gone_for_every_reader_at_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, BOB, "pineapple")
        old = await publish(core, ALICE, ALICE.sign(30023, "pineapple once", [["d", "x"]], at=at(-2)))
        for wanted in ({"ids": [message.id]}, {"kinds": [9]}, {"#h": [CHANNEL], "kinds": [9]}):
            assert await readable(core, wanted) == [message.id]
        assert set(await found(core, "pineapple")) == {message.id, old.id}
        new = await publish(core, ALICE, ALICE.sign(30023, "pineapple again", [["d", "x"]], at=at(-1)))
        assert await delete_in_group(core, ALICE, ["e", message.id]) == ""
        for wanted in ({"ids": [message.id]}, {"kinds": [9]}, {"#h": [CHANNEL], "kinds": [9]}):
            assert await readable(core, wanted) == []
        assert await readable(core, {"authors": [ALICE.pubkey], "kinds": [30023], "#d": ["x"]}) == [new.id]
        assert await found(core, "pineapple") == [new.id]
        assert await delete(core, ALICE, ["a", f"30023:{ALICE.pubkey}:x"]) == ""
        assert await readable(core, {"kinds": [30023]}) == []
        assert await found(core, "pineapple") == []
        # The deletions themselves are there for everybody who has a copy.
        assert len(await readable(core, {"kinds": [5, 9005]})) == 2
