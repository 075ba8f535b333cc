"""Kinds 9002 and 9008: what a group is, and its end; who may change it, what is said of it, and who still sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from relay.nostr.event import load_event
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, Person, running_core
from tests.support.groups import DAVE, OTHER, STATE, Told, edit, listening, people_in, settled, told

NO_TAG = "invalid: kind:9002 must include at least one metadata tag (name, about, archived, topic, purpose)"
NOT_ADMIN = "invalid: actor not authorized for name/about/archived changes"
NOT_ADMIN_SINCE = "invalid: actor not authorized for visibility/ttl changes"


async def edited(core: Core, person: Person, *tags: list[str]) -> Told:
    return await told(core, person, person.sign(9002, tags=[["h", CHANNEL], *tags]))


async def metadata_tags(core: Core, channel: str = CHANNEL) -> list[list[str]]:
    """Of the one live 39000."""
    (row,) = await core.pool.fetch(
        "SELECT signed_json FROM events WHERE kind = 39000 AND channel_id = $1 AND deleted_at IS NULL", channel
    )
    return load_event(row[0]).tags


@pytest.mark.parametrize(
    ("tags", "messages", "column", "in_state"),
    [
        ([["name", "new"]], [], ("name", "new"), ["name", "new"]),
        ([["about", "all of it"]], [], ("description", "all of it"), ["about", "all of it"]),
        ([["topic", "T"]], [{"type": "topic_changed", "topic": "T"}], ("topic", "T"), ["topic", "T"]),
        ([["purpose", "P"]], [{"type": "purpose_changed", "purpose": "P"}], ("purpose", "P"), ["purpose", "P"]),
        (
            [["visibility", "private"]],
            [{"type": "visibility_changed", "visibility": "private"}],
            ("visibility", "private"),
            ["private"],
        ),
        ([["ttl", "60"]], [{"type": "ttl_changed", "ttl_seconds": 60}], ("ttl_seconds", 60), ["ttl", "60"]),
    ],
)
async def test_each_tag_changes_its_column_and_has_its_message(
    migrated_dsn: str, tags: list[list[str]], messages: list[dict[str, Any]], column: tuple[str, Any], in_state: Any
) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        before = await core.pool.fetchval("SELECT updated_at FROM channels")
        seen = await edited(core, BOB, *tags)
        assert (seen.outcome.accepted, seen.outcome.message) == (True, "")
        assert seen.actions == ["9002", "channel_updated", *["40099" for _ in messages], "39000", "39001", "39002"]
        # The keys in this order, with the actor after the type.
        expected = [{"type": m["type"], "actor": BOB.pubkey, **{k: m[k] for k in m if k != "type"}} for m in messages]
        assert [list(message.items()) for message in seen.messages] == [list(m.items()) for m in expected]
        name, value = column
        assert await core.pool.fetchval(f"SELECT {name} FROM channels") == value
        assert await core.pool.fetchval("SELECT updated_at FROM channels") > before
        assert in_state in await metadata_tags(core)
        updated = next(entry for entry in seen.entries if entry[0] == "channel_updated")
        assert updated[2] == BOB.pubkey
        assert updated[3]["changed"] == tags[0][0]


async def test_tags_are_gone_through_in_their_order(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await edited(
            core,
            ALICE,
            ["ttl", "9"],
            ["purpose", "p"],
            ["topic", "first"],
            ["name", "n"],
            ["topic", "second"],
            ["visibility", "private"],
            ["archived", "true"],
        )
        kinds = ["ttl_changed", "purpose_changed", "topic_changed", "topic_changed", "visibility_changed"]
        assert [message["type"] for message in seen.messages] == [*kinds, "channel_archived"]
        row = await core.pool.fetchrow("SELECT name, topic, visibility::text, archived_at FROM channels")
        assert (row["name"], row["topic"], row["visibility"]) == ("n", "second", "private")
        assert row["archived_at"] is not None
        assert seen.actions.count("channel_updated") == 1
        (metadata,) = [entry[3] for entry in seen.entries if entry[0] == "channel_updated"]
        assert metadata == {
            "changed": "ttl,purpose,topic,name,visibility,archived",
            "ttl": "9",
            "visibility": "private",
            "archived": "true",
        }


@pytest.mark.parametrize(
    ("person", "tags", "text"),
    [
        (ALICE, [], NO_TAG),
        (ALICE, [["picture", "x"]], NO_TAG),
        (ALICE, [["topic", "t"]] * 33, "invalid: kind:9002 must include at most 32 metadata tags (got 33)"),
        (ALICE, [["archived", "maybe"]], 'invalid: invalid archived value: maybe (must be "true" or "false")'),
        (ALICE, [["archived"]], "invalid: archived tag must have a value"),
        (ALICE, [["visibility"]], "invalid: visibility tag must have a value"),
        (ALICE, [["name"]], "invalid: name tag must have a value"),
        (
            ALICE,
            [["visibility", "secret"]],
            'invalid: invalid visibility value: secret (must be "open" or "private")',
        ),
        *(
            (
                ALICE,
                [["ttl", value]],
                f"invalid: invalid ttl value: {value} (must be a positive integer of seconds, or empty to clear)",
            )
            for value in ("0", "-1", "1.5", "x", "2147483648", "٣", "99999999999")
        ),
        (ALICE, [["name", " "]], "invalid: channel name is required"),
        (ALICE, [["name", "n" * 256]], "invalid: channel name exceeds 255 characters"),
        *(
            (
                CAROL if field != "about" else ALICE,
                [[field, "é" * 16_385]],
                f"invalid: channel {field} exceeds 32768 bytes",
            )
            for field in ("about", "topic", "purpose")
        ),
        (ALICE, [["topic", "t"], ["archived", "false"]], "invalid: channel is not archived"),
        (ALICE, [["archived", "true"], ["archived", "true"]], "invalid: channel is already archived"),
        (CAROL, [["name", "x"]], NOT_ADMIN),
        (CAROL, [["about", "x"]], NOT_ADMIN),
        (CAROL, [["topic", "x"], ["archived", "true"]], NOT_ADMIN),
        (CAROL, [["visibility", "private"]], NOT_ADMIN_SINCE),
        (CAROL, [["ttl", ""]], NOT_ADMIN_SINCE),
        (DAVE, [["topic", "x"]], "invalid: not a member"),
        (DAVE, [["purpose", "x"]], "invalid: not a member"),
        (DAVE, [["name", "x"]], NOT_ADMIN),
    ],
)
async def test_what_is_refused_leaves_nothing(
    migrated_dsn: str, person: Person, tags: list[list[str]], text: str
) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        row = await core.pool.fetchrow("SELECT * FROM channels")
        seen = await edited(core, person, *tags)
        assert (seen.outcome.accepted, seen.outcome.message) == (False, text)
        assert seen.entries == []
        assert await core.pool.fetchrow("SELECT * FROM channels") == row


async def test_members_set_topic_and_purpose_and_empty_clears(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        assert (await edit(core, CAROL, ["topic", "T"], ["purpose", "P"])).accepted
        by = await core.pool.fetchrow("SELECT topic_set_by, purpose_set_by, topic_set_at FROM channels")
        assert by[0] == by[1] == bytes.fromhex(CAROL.pubkey)
        assert by[2] is not None
        assert (await edit(core, BOB, ["topic", ""], ["about", ""])).accepted
        row = await core.pool.fetchrow("SELECT topic, purpose, topic_set_by, purpose_set_by FROM channels")
        assert list(row) == [None, "P", bytes.fromhex(BOB.pubkey), bytes.fromhex(CAROL.pubkey)]
        assert not {"topic", "about"} & {tag[0] for tag in await metadata_tags(core)}


async def test_unknown_channels_and_missing_tags(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        assert (await edit(core, ALICE, ["name", "x"], channel=OTHER)).message == "restricted: not a channel member"
        await core.create(ALICE, visibility="private")
        outcome = await edit(core, DAVE, ["topic", "x"])
        assert outcome.message == "restricted: not a channel member"


async def test_archiving_stops_everything_but_unarchiving(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await edited(core, ALICE, ["archived", "true"])
        assert seen.messages == [{"type": "channel_archived", "actor": ALICE.pubkey}]
        assert ["archived", "true"] in await metadata_tags(core)
        archived = "invalid: channel is archived"
        assert (await core.say(CAROL, "hello")).message == archived
        assert (await edit(core, ALICE, ["name", "x"])).message == archived
        assert (await edit(core, ALICE, ["archived", "true"], content="again")).message == archived
        assert (await core.add(ALICE, DAVE)).message == archived
        for kind in (9001, 9008, 9021, 9022):
            event = ALICE.sign(kind, tags=[["h", CHANNEL], ["p", CAROL.pubkey]])
            assert (await core.submit(ALICE, event)).message == archived, kind
        assert (await edit(core, CAROL, ["archived", "false"])).message == NOT_ADMIN
        seen = await edited(core, BOB, ["archived", "false"], ["name", "back"])
        assert seen.messages == [{"type": "channel_unarchived", "actor": BOB.pubkey}]
        assert not any(tag[0] == "archived" for tag in await metadata_tags(core))
        assert (await core.say(CAROL, "hello")).accepted


async def test_a_life_in_seconds_its_end_and_its_renewal(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)

        async def remaining() -> float | None:
            return await core.pool.fetchval("SELECT extract(epoch FROM ttl_deadline - now())::float8 FROM channels")

        assert await remaining() is None
        seen = await edited(core, ALICE, ["ttl", "600"])
        assert 590 < (await remaining() or 0) <= 600
        told_deadline = datetime.fromisoformat(seen.event(39000).first_tag("ttl_deadline") or "")
        deadline = await core.pool.fetchval("SELECT ttl_deadline FROM channels")
        assert told_deadline == deadline.replace(microsecond=0)
        assert told_deadline.utcoffset() == datetime.now(UTC).utcoffset()
        # Archived it may be over; to unarchive it is to give it its time again.
        await edit(core, ALICE, ["archived", "true"])
        await core.pool.execute("UPDATE channels SET ttl_deadline = now() - interval '1 day'")
        await edit(core, ALICE, ["archived", "false"])
        assert 590 < (await remaining() or 0) <= 600
        seen = await edited(core, ALICE, ["ttl", ""])
        assert seen.messages == [{"type": "ttl_changed", "actor": ALICE.pubkey, "ttl_seconds": None}]
        assert await remaining() is None
        assert not {"ttl", "ttl_deadline"} & {tag[0] for tag in await metadata_tags(core)}


async def test_the_operator_fixes_the_life_that_an_edit_gives(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, ephemeral_ttl_override=77) as core:
        await people_in(core)
        seen = await edited(core, ALICE, ["ttl", "600"])
        assert seen.messages[0]["ttl_seconds"] == 77
        assert await core.pool.fetchval("SELECT ttl_seconds FROM channels") == 77
        assert (await edit(core, ALICE, ["ttl", ""])).accepted
        assert await core.pool.fetchval("SELECT ttl_seconds FROM channels") is None


@pytest.mark.parametrize(
    ("person", "kind", "content", "tags"),
    [
        (CAROL, 9, "hello", []),
        (CAROL, 7, "+", [["e", "{message}"]]),
        (CAROL, 5, "", [["e", "{message}"]]),
        (CAROL, 9005, "", [["e", "{message}"]]),
        (CAROL, 40002, "hello", []),
        (CAROL, 9002, "", [["topic", "x"]]),
        (ALICE, 9000, "", [["p", DAVE.pubkey]]),
        (ALICE, 9001, "", [["p", CAROL.pubkey]]),
        (DAVE, 9021, "", []),
        (CAROL, 9022, "", []),
    ],
)
async def test_every_event_gives_an_ephemeral_channel_its_time_again(
    migrated_dsn: str, person: Person, kind: int, content: str, tags: list[list[str]]
) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, ttl="600")
        message = CAROL.sign(9, "first", [["h", CHANNEL]])
        assert (await core.submit(CAROL, message)).accepted
        await core.pool.execute("UPDATE channels SET ttl_deadline = now() + interval '1 second'")
        filled = [[name, value.format(message=message.id)] for name, value in tags]
        seen = await told(core, person, person.sign(kind, content, [["h", CHANNEL], *filled]))
        assert seen.outcome.accepted, seen.outcome.message
        deadline = await core.pool.fetchval("SELECT ttl_deadline FROM channels")
        assert (deadline - datetime.now(UTC)).total_seconds() > 500
        if any(event.kind == 39000 for event in seen.events):
            named = datetime.fromisoformat(seen.event(39000).first_tag("ttl_deadline") or "")
            assert named == deadline.replace(microsecond=0)


async def test_no_event_gives_time_to_a_channel_without_a_life(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        await core.say(CAROL, "hello")
        await edit(core, CAROL, ["topic", "x"])
        assert await core.pool.fetchval("SELECT ttl_deadline FROM channels") is None


async def test_who_has_lost_sight_hears_so_and_of_nothing_after(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        assert CHANNEL in await core.directory.accessible(DAVE.pubkey)
        async with listening(core, DAVE) as stranger, listening(core, CAROL) as member:
            assert (await edit(core, ALICE, ["visibility", "private"])).accepted
            # By the time of the OK it is done.
            assert not core.hub.may_receive(stranger, CHANNEL)
            assert await stranger.read(1) == [["CLOSED", "sub", "restricted: channel access revoked"]]
            kinds = [message[2]["kind"] for message in await member.read(5)]
            assert kinds == [9002, 40099, *STATE]
            await core.say(CAROL, "among us")
            assert (await member.read(1))[0][2]["content"] == "among us"
            await stranger.read_nothing()
        assert CHANNEL not in await core.directory.accessible(DAVE.pubkey)
        assert (await core.say(DAVE, "hello")).message == "restricted: not a channel member"


async def test_who_gains_sight_has_it_at_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        assert CHANNEL not in await core.directory.accessible(DAVE.pubkey)
        await core.hub.watch([CHANNEL])
        assert (await edit(core, ALICE, ["visibility", "open"])).accepted
        assert core.hub.audiences.may_receive(CHANNEL, DAVE.pubkey)
        assert CHANNEL in await core.directory.accessible(DAVE.pubkey)
        assert (await core.say(DAVE, "hello")).accepted


async def test_a_dm_stays_private(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        opened = await core.ingest.open_dm(ALICE.caller, [BOB.pubkey])
        await core.pool.execute("UPDATE channel_members SET role = 'owner'")  # which no event can do
        outcome = await edit(core, ALICE, ["visibility", "open"], channel=opened.channel_id)
        assert outcome.message == "invalid: a DM stays private"
        assert (await edit(core, ALICE, ["topic", "us"], channel=opened.channel_id)).accepted


async def test_the_same_edit_again_is_a_duplicate(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        event = ALICE.sign(9002, tags=[["h", CHANNEL], ["topic", "x"]])
        assert (await core.submit(ALICE, event)).message == ""
        seen = await told(core, ALICE, event)
        assert (seen.outcome.accepted, seen.outcome.message, seen.entries) == (True, "duplicate:", [])


async def test_an_owner_ends_the_group(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        for person in (BOB, CAROL, DAVE):
            outcome = await core.submit(person, person.sign(9008, tags=[["h", CHANNEL]]))
            assert outcome.message == "invalid: only owner can delete group"
        async with listening(core, CAROL) as member, listening(core, DAVE) as stranger:
            seen = await told(core, ALICE, ALICE.sign(9008, tags=[["h", CHANNEL]]))
            assert (seen.outcome.accepted, seen.outcome.message) == (True, "")
            # Why the subscription ends is told before it does.
            for reader in (member, stranger):
                *events, last = await reader.read(3)
                assert [message[2]["kind"] for message in events] == [9008, 40099]
                assert last == ["CLOSED", "sub", "restricted: channel access revoked"]
                await reader.read_nothing()
        assert seen.actions == ["9008", "channel_deleted", "40099"]
        assert seen.messages == [{"type": "channel_deleted", "actor": ALICE.pubkey}]
        assert [entry[2] for entry in seen.entries] == [ALICE.pubkey, ALICE.pubkey, core.key.public_hex]
        assert await core.kinds("kind BETWEEN 39000 AND 39002") == []
        assert not core.hub.audiences.may_receive(CHANNEL, ALICE.pubkey)
        for person in (ALICE, DAVE):
            assert CHANNEL not in await core.directory.accessible(person.pubkey)
            assert (await core.say(person, "hello")).message == "restricted: not a channel member"
        assert not await core.directory.is_member(CHANNEL, ALICE.pubkey)
        # Its id is used up.
        assert (await core.create(BOB, about="anew")).message == "duplicate: channel already exists"


async def test_the_same_end_again_is_not_a_second_one(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        event = ALICE.sign(9008, tags=[["h", CHANNEL]])
        outcomes: list[str] = []

        async def submit() -> None:
            outcomes.append((await core.submit(ALICE, event)).message)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(submit)
        assert sorted(outcomes)[0] == ""
        assert set(outcomes[1:]) | {""} <= {"", "invalid: channel not found", "restricted: not a channel member"}
        await settled(core)
        assert await core.pool.fetchval("SELECT count(*) FROM audit_log WHERE action = 'channel_deleted'") == 1


async def test_visibility_as_nip29_writes_it(migrated_dsn: str) -> None:
    """Bare tags, which its clients send with every edit: a change only where it is one."""
    async with running_core(migrated_dsn) as core:
        h = ["h", CHANNEL]
        await core.submit(ALICE, ALICE.sign(9007, tags=[h, ["name", "plans"], ["private"], ["closed"]]))

        async def visibility() -> str:
            return str(await core.pool.fetchval("SELECT visibility::text FROM channels"))

        assert await visibility() == "private"
        seen = await told(core, ALICE, ALICE.sign(9002, tags=[h, ["about", "ours"], ["private"]]))
        assert (seen.outcome.message, seen.messages) == ("", [])
        seen = await told(core, ALICE, ALICE.sign(9002, tags=[h, ["about", "all"], ["public"]]))
        assert [message["type"] for message in seen.messages] == ["visibility_changed"]
        assert await visibility() == "open"
        # Ours says more, so it counts.
        await core.submit(ALICE, ALICE.sign(9002, tags=[h, ["private"], ["visibility", "open"], ["topic", "t"]]))
        assert await visibility() == "open"
