"""Events in the table: batches, mentions, tag values, replacement."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import Connection, connect
from relay.nostr.event import Event, load_event
from relay.store import channels, events, members
from relay.store.events import Replaced, Row
from tests.support.core import ALICE, BOB, CAROL, CHANNEL
from tests.support.storing import insert_batch

text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)


def row(event: Event, channel: str | None = None, member: str | None = None) -> Row:
    return Row(event, channel, member)


async def test_a_batch_stores_what_is_new_and_says_so(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    first, second = ALICE.sign(1, "a"), ALICE.sign(1, "b")
    async with con.transaction():
        new, xid = await insert_batch(con, [row(first)])
        assert xid == int(await con.fetchval("SELECT pg_current_xact_id()::text"))
    assert new == {first.id}
    new, _ = await insert_batch(con, [row(first), row(second)])
    assert new == {second.id}
    assert await events.known(con, [first.id, second.id, "ab" * 32]) == {first.id, second.id}
    assert (await insert_batch(con, []))[0] == set()
    con.terminate()


async def test_the_insert_asks_for_channel_and_membership_again(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    await channels.create(
        con,
        channel_id=CHANNEL,
        name="x",
        channel_type="stream",
        visibility="private",
        description=None,
        created_by=ALICE.pubkey,
    )
    await members.put(con, CHANNEL, ALICE.pubkey, "owner", None)
    mine, foreign, proxied = ALICE.sign(9, "a"), BOB.sign(9, "b"), BOB.sign(9, "c")
    rows = [row(mine, CHANNEL, ALICE.pubkey), row(foreign, CHANNEL, BOB.pubkey), row(proxied, CHANNEL, None)]
    assert (await insert_batch(con, rows))[0] == {mine.id, proxied.id}
    await con.execute("UPDATE channels SET archived_at = now()")
    assert (await insert_batch(con, [row(ALICE.sign(9, "d"), CHANNEL, ALICE.pubkey)]))[0] == set()
    con.terminate()


async def test_mentions_are_rows_of_valid_keys_once_each(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    tags = [["p", BOB.pubkey], ["p", BOB.pubkey.upper()], ["p", "nonsense"], ["p"], ["p", CAROL.pubkey]]
    await insert_batch(con, [row(ALICE.sign(1, "a", tags))])
    await events.insert_one(con, ALICE.sign(1, "b", tags), None)
    rows = await con.fetch("SELECT encode(pubkey, 'hex'), count(*) FROM event_mentions GROUP BY 1")
    assert {record[0]: record[1] for record in rows} == {BOB.pubkey: 2, CAROL.pubkey: 2}
    # The list of a group's members mentions none of them.
    assert await events.insert_one(con, ALICE.sign(39002, "", tags), CHANNEL)
    assert await con.fetchval("SELECT count(*) FROM event_mentions WHERE kind = 39002") == 0
    con.terminate()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=text, tags=st.lists(st.lists(text, min_size=1, max_size=3), max_size=5))
def test_every_event_comes_back_as_it_was(migrated_dsn: str, content: str, tags: list[list[str]]) -> None:
    import trio

    event = ALICE.sign(1, content, tags)

    async def store_both_ways() -> None:
        con = await connect(migrated_dsn)
        try:
            for store in (insert_batch(con, [row(event)]), events.insert_one(con, event, None)):
                await con.execute("DELETE FROM events")
                await store
                found = await con.fetchrow("SELECT signed_json, content, tags, tag_values FROM events")
                assert load_event(found["signed_json"]) == event
                assert found["content"] == content
                assert orjson.loads(found["tags"]) == tags
                letters = {
                    f"{tag[0]}:{tag[1]}"
                    for tag in tags
                    if len(tag) > 1 and len(tag[0]) == 1 and tag[0].isascii() and tag[0].isalpha()
                }
                assert set(found["tag_values"]) == letters
        finally:
            con.terminate()

    trio.run(store_both_ways)


async def test_the_h_tag_of_the_channel_itself_is_not_indexed(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    event = ALICE.sign(9, "a", [["h", CHANNEL], ["h", "other"]])
    assert events.tag_values(event, CHANNEL) == '{"h:other"}'
    con.terminate()


async def test_search_leaves_out_what_is_not_for_people(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    for kind in (1, 9, 1059, 40099, 44100):
        await events.insert_one(con, ALICE.sign(kind, "Grüße"), None)
    rows = await con.fetch(
        "SELECT kind FROM events WHERE search @@ plainto_tsquery('simple', 'GRÜSSE grüße') OR "
        "search @@ plainto_tsquery('simple', 'GRÜßE') ORDER BY kind"
    )
    assert [record[0] for record in rows] == [1, 9]
    con.terminate()


async def test_addressable_events_replace_by_d_tag(con: Connection) -> None:
    base = 1_700_000_000
    async with con.transaction():
        for offset, d in ((0, "a"), (1, "b"), (2, "a")):
            article = ALICE.sign(30023, str(offset), [["d", d]], at=base + offset)
            assert await events.replace(con, article, None) is Replaced.STORED
        old = ALICE.sign(30023, "old", [["d", "a"]], at=base)
        assert await events.replace(con, old, None) is Replaced.LOST
        assert await events.replace(con, ALICE.sign(30023, "none", at=base), None) is Replaced.STORED
    rows = await con.fetch("SELECT content, d_tag FROM events WHERE deleted_at IS NULL ORDER BY 1")
    assert [tuple(record.values()) for record in rows] == [("1", "b"), ("2", "a"), ("none", "")]


@pytest.mark.parametrize(("kind", "d"), [(30023, ""), (30023, "a b"), (30023, "x" * 1024), (0, ""), (3, "")])
async def test_what_its_author_took_back_by_address_does_not_come_again(con: Connection, kind: int, d: str) -> None:
    base = 1_700_000_000
    tags = [["d", d]] if d else []
    deletion = ALICE.sign(5, tags=[["a", f"{kind}:{ALICE.pubkey}:{d}"]], at=base)
    async with con.transaction():
        await events.insert_one(con, deletion, None)
        for at in (base - 5, base):
            assert await events.replace(con, ALICE.sign(kind, "{}", tags, at=at), None) is Replaced.DELETED_BY_AUTHOR
        # A deletion of a deletion has no effect.
        await events.mark_deleted(con, deletion.id)
        old = ALICE.sign(kind, "{}", tags, at=base)
        assert await events.replace(con, old, None) is Replaced.DELETED_BY_AUTHOR
        assert await events.replace(con, BOB.sign(kind, "{}", tags, at=base), None) is Replaced.STORED
        assert await events.replace(con, ALICE.sign(kind, "{}", tags, at=base + 1), None) is Replaced.STORED
        assert await events.replace(con, ALICE.sign(30023, "", [["d", "other"]], at=base), None) is Replaced.STORED


async def test_an_address_is_taken_back_by_its_author_only(con: Connection) -> None:
    article = ALICE.sign(30023, "", [["d", "a"]], at=1_700_000_000)
    await events.insert_one(con, BOB.sign(5, tags=[["a", f"30023:{ALICE.pubkey}:a"]]), None)
    async with con.transaction():
        assert await events.replace(con, article, None) is Replaced.STORED


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [([], None), ([["expiration", "soon"], ["expiration", "17"]], 17), ([["expiration", "9" * 18]], 10**18 - 1)],
)
async def test_both_ways_in_note_when_an_event_expires(
    con: Connection, tags: list[list[str]], seconds: int | None
) -> None:
    one, of_batch = ALICE.sign(1, "a", tags), ALICE.sign(1, "b", tags)
    await events.insert_one(con, one, None)
    await insert_batch(con, [row(of_batch), row(ALICE.sign(1, "stays"))])
    for event in (one, of_batch):
        stored = await events.get(con, event.id)
        assert stored is not None
        assert (stored.expires_at, stored.deleted) == (seconds, False)
    assert await con.fetchval("SELECT expires_at FROM events WHERE content = 'stays'") is None


async def generic_plan(con: Connection, statement: str, *arguments: str) -> str:
    """As it is once a connection has run it some times: made for any arguments."""
    await con.execute("SET plan_cache_mode = force_generic_plan")
    await con.execute(f"PREPARE asked AS {statement}")
    rows = await con.fetch(f"EXPLAIN EXECUTE asked({', '.join(arguments)})")
    return "\n".join(row[0] for row in rows)


CROWD = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, tag_values, signed_json)
SELECT sha256(('{name}' || i)::bytea), sha256((i % 50)::text::bytea), 1700000000 + i, {kind}, '[]', 'x',
       decode(repeat('00', 64), 'hex'), {channel}, {tags}, 'x' FROM generate_series(1, 5000) i"""


async def test_the_state_of_a_channel_is_found_beside_all_that_is_said_in_it(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    await con.execute(CROWD.format(name="m", kind=9, channel=f"'{CHANNEL}'", tags="'{}'"))
    await con.execute("ANALYZE events")
    arguments = ("'{39000,39001,39002}'", f"'\\x{ALICE.pubkey}'", f"'{CHANNEL}'")
    for statement in (events._NEWEST_STATE, events._SUPERSEDE_STATE):
        assert "events_replaceable" in await generic_plan(con, statement, *arguments)
        await con.execute("DEALLOCATE asked")
    con.terminate()


async def test_who_names_an_address_is_not_in_the_way_of_its_author(migrated_dsn: str) -> None:
    con = await connect(migrated_dsn)
    address = f"a:0:{ALICE.pubkey}:"
    await con.execute(CROWD.format(name="named", kind=1, channel="NULL", tags=f"ARRAY['{address}']"))
    await con.execute(CROWD.format(name="gone", kind=5, channel="NULL", tags="ARRAY['e:' || i]"))
    await con.execute("ANALYZE events")
    arguments = ("0", f"'\\x{ALICE.pubkey}'", "NULL", "NULL", f"'{address}'", "1700000000")
    plan = await generic_plan(con, events._NEWEST, *arguments)
    assert "events_deletions" in plan
    assert "events_tags" not in plan
    con.terminate()
