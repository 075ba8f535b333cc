"""Kind 5: whose events one may take back, and what goes with them."""

from __future__ import annotations

import pytest

from relay.ingest.types import Admission, Door
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Person, running_core
from tests.support.deleting import (
    at,
    audited,
    counts,
    delete,
    delete_in_group,
    live,
    publish,
    reactions,
    reply,
    say,
)


async def test_the_author_takes_back_an_event(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, BOB)
        deletion = BOB.sign(5, tags=[["e", message.id]])
        await publish(core, BOB, deletion)
        assert not await live(core, message)
        assert await core.pool.fetchval("SELECT channel_id::text FROM events WHERE kind = 5") == CHANNEL
        assert await audited(core) == [(deletion.id, {"target": message.id})]
        assert (await core.submit(BOB, deletion)).message == "duplicate:"
        assert (await core.submit(BOB, message)).message == "duplicate:"
        assert not await live(core, message)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ([], "invalid: missing e tag for target event"),
        ([["e", "nonsense"]], "invalid: missing e tag for target event"),
        ([["e"]], "invalid: missing e tag for target event"),
        ([["e", "ff" * 32]], "invalid: target event not found"),
        ([["e", "ff" * 32], ["e", "ff" * 32]], "invalid: target event not found"),
        ([["e", "of alice"]], "invalid: must be event author"),
        ([["e", "of alice"], ["e", "of bob"]], "invalid: must be event author"),
        (
            [["e", "of bob"], ["e", "nonsense"]],
            "invalid: deletion events must reference exactly one target via e or a tag (got e=2, a=0)",
        ),
        (
            [["e", "of bob"], ["e"], ["a", "nonsense"], ["a"]],
            "invalid: deletion events must reference exactly one target via e or a tag (got e=2, a=2)",
        ),
        (
            [["a", "0:of bob:"], ["a", "nonsense"]],
            "invalid: deletion events must reference exactly one target via e or a tag (got e=0, a=2)",
        ),
        (
            [["a", "0:of bob:"], ["e", "nonsense"]],
            "invalid: deletion events must reference exactly one target via e or a tag (got e=1, a=1)",
        ),
        ([["a"]], "invalid: malformed deletion target id"),
        ([["a", "0:nonsense:"]], "invalid: malformed deletion target id"),
        ([["a", "1:of bob:"]], "invalid: malformed deletion target id"),
        ([["a", "0:of bob:x"]], "invalid: malformed deletion target id"),
        ([["a", "30023:of bob:absent"]], "invalid: target event not found"),
        ([["a", "30023:of bob:"]], "invalid: target event not found"),
        ([["a", "3:of bob:"]], "invalid: target event not found"),
        ([["a", "0:of alice:"]], "invalid: must be event author"),
        ([["a", "0:of alice:"], ["a", "0:of bob:"]], "invalid: must be event author"),
    ],
)
async def test_what_a_deletion_may_name(migrated_dsn: str, tags: list[list[str]], text: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        names = {"of alice": (await say(core, ALICE)).id, "of bob": (await say(core, BOB)).id}
        for person in (ALICE, BOB):
            await publish(core, person, person.sign(0, "{}"))

        def spelled(value: str) -> str:
            if ":" in value:
                return value.replace("of alice", ALICE.pubkey).replace("of bob", BOB.pubkey)
            return names.get(value, value)

        assert await delete(core, BOB, *([tag[0], *map(spelled, tag[1:])] for tag in tags)) == text
        assert 5 not in await core.kinds()
        assert await core.kinds("kind IN (0, 9)") == [0, 0, 9, 9]


async def test_deleting_the_deleted_is_stored_and_changes_nothing(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, BOB)
        assert await delete(core, BOB, ["e", message.id], at=at(-1)) == ""
        assert await delete(core, BOB, ["e", message.id]) == ""
        assert len(await audited(core)) == 1
        # The second one tells those who could read the message, and nobody else.
        rows = await core.pool.fetch("SELECT channel_id::text FROM events WHERE kind = 5 ORDER BY created_at")
        assert [row[0] for row in rows] == [CHANNEL, CHANNEL]


@pytest.mark.parametrize("kind", [5, 9005])
async def test_a_deletion_is_never_deleted(migrated_dsn: str, kind: int) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, ALICE)
        tags = [["h", CHANNEL], ["e", message.id]]
        first = await publish(core, ALICE, ALICE.sign(kind, tags=tags))
        assert await delete(core, ALICE, ["e", first.id]) == ""
        assert await delete_in_group(core, ALICE, ["e", first.id]) == ""
        assert await live(core, first)
        assert [target for _, target in await audited(core)] == [{"target": message.id}]
        assert len(await core.kinds("content LIKE '%message_deleted%'")) == (kind == 9005)


async def test_what_the_relay_signed_for_somebody_is_theirs_to_delete(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        notice = await core.pool.fetchval("SELECT encode(id, 'hex') FROM events WHERE kind = 44100")
        assert await delete(core, BOB, ["e", notice]) == "invalid: must be event author"
        assert await delete(core, ALICE, ["e", notice]) == ""
        assert not await live(core, notice)


@pytest.mark.parametrize("kind", [39000, 39001, 39002])
async def test_the_state_of_a_group_is_nobodys_to_delete(migrated_dsn: str, kind: int) -> None:
    """Its first `p` tag names a member, for whom it was not signed: without it the group would have no state."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        state = await core.pool.fetchval("SELECT encode(id, 'hex') FROM events WHERE kind = $1", kind)
        assert await delete(core, ALICE, ["e", state]) == "invalid: must be event author"
        assert await delete_in_group(core, ALICE, ["e", state]) == (
            "invalid: must be event author or channel owner/admin"
        )
        address = f"{kind}:{core.key.public_hex}:{CHANNEL}"
        assert await delete(core, ALICE, ["a", address]) == "invalid: must be event author"
        assert await live(core, state)


async def test_a_proxy_deletes_for_the_author_and_nobody_else(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        message = await say(core, ALICE)
        proxy = Person.number(7, scopes=frozenset({"proxy:submit"}))
        tags = [["e", message.id]]
        assert (await core.submit(proxy, BOB.sign(5, tags=tags, at=1_000_000))).message == (
            "invalid: must be event author"
        )
        assert (await core.submit(proxy, ALICE.sign(5, tags=tags, at=1_000_000))).message == ""
        assert not await live(core, message)


async def test_who_lost_the_channel_takes_nothing_back(migrated_dsn: str) -> None:
    """What the caches said at admission may be over when the effect is done."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.add(ALICE, BOB)
        message = await say(core, BOB)
        effects = [BOB.sign(5, tags=[["e", message.id]]), BOB.sign(9005, tags=[["h", CHANNEL], ["e", message.id]])]
        admitted = [await core.ingest.admit(event, BOB.caller, Door.WEBSOCKET) for event in effects]
        await core.pool.execute("UPDATE channel_members SET removed_at = now() WHERE role = 'member'")
        for admission in admitted:
            assert isinstance(admission, Admission)
            assert (await core.ingest.perform(admission)).message == "restricted: not a channel member"
        assert await live(core, message)


async def test_a_deleted_reaction_can_be_given_again(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, ALICE)
        first = await publish(core, BOB, BOB.sign(7, "+", [["e", message.id]], at=at(-2)))
        assert await delete(core, BOB, ["e", first.id], at=at(-1)) == ""
        assert await reactions(core) == 0
        await publish(core, BOB, BOB.sign(7, "+", [["e", message.id]]))
        # The first one is deleted already: this is not about the second.
        assert await delete(core, BOB, ["e", first.id]) == ""
        assert await reactions(core) == 1


async def test_a_reaction_whose_row_names_no_event_is_found_by_what_it_says(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, ALICE)
        unnamed = await publish(core, BOB, BOB.sign(7, "", [["e", message.id]]))
        await publish(core, BOB, BOB.sign(7, "x", [["e", message.id]]))
        await publish(core, CAROL, CAROL.sign(7, "+", [["e", message.id]]))
        await core.pool.execute("UPDATE reactions SET reaction_event_id = NULL")
        assert await delete(core, BOB, ["e", unnamed.id]) == ""
        rows = await core.pool.fetch("SELECT encode(pubkey, 'hex'), emoji FROM reactions WHERE removed_at IS NULL")
        assert {(row[0], row[1]) for row in rows} == {(BOB.pubkey, "x"), (CAROL.pubkey, "+")}


async def test_a_row_that_names_another_event_stays(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = await say(core, ALICE)
        reaction = await publish(core, BOB, BOB.sign(7, "+", [["e", message.id]]))
        await core.pool.execute("UPDATE reactions SET reaction_event_id = $1", b"\xee" * 32)
        assert await delete(core, BOB, ["e", reaction.id]) == ""
        assert await reactions(core) == 1


@pytest.mark.parametrize("by_address", [False, True])
async def test_a_deleted_profile_is_forgotten(migrated_dsn: str, by_address: bool) -> None:
    async with running_core(migrated_dsn, relay_url="ws://team.example") as core:
        content = '{"name":"al","nip05":"al@team.example","picture":"p","about":"x"}'
        profile = await publish(core, ALICE, ALICE.sign(0, content, at=at(-2)))
        await publish(core, BOB, BOB.sign(0, '{"name":"bob"}'))
        tag = ["a", f"0:{ALICE.pubkey}:"] if by_address else ["e", profile.id]
        assert await delete(core, ALICE, tag, at=at(-1)) == ""
        query = "SELECT display_name, nip05_handle, avatar_url, about FROM users WHERE pubkey = $1"
        row = await core.pool.fetchrow(query, bytes.fromhex(ALICE.pubkey))
        assert tuple(row.values()) == (None, None, None, None)
        assert await core.pool.fetchval("SELECT display_name FROM users WHERE display_name IS NOT NULL") == "bob"
        # The handle is free again.
        await publish(core, BOB, BOB.sign(0, '{"nip05":"al@team.example"}', at=at(1)))
        assert await core.pool.fetchval("SELECT nip05_handle FROM users WHERE nip05_handle IS NOT NULL") == (
            "al@team.example"
        )


async def test_deleting_a_replaced_profile_leaves_the_newer_one(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        old = await publish(core, ALICE, ALICE.sign(0, '{"name":"old"}', at=at(-2)))
        await publish(core, ALICE, ALICE.sign(0, '{"name":"new"}', at=at(-1)))
        assert await delete(core, ALICE, ["e", old.id]) == ""
        assert await core.pool.fetchval("SELECT display_name FROM users") == "new"


async def test_a_deleted_reply_is_not_counted(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        root = await say(core, ALICE, "root")
        answer = await reply(core, BOB, "answer", root)
        nested = await say(core, BOB, "nested", ["e", root.id, "", "root"], ["e", answer.id, "", "reply"])
        assert (await counts(core, root), await counts(core, answer)) == ((1, 2), (1, 0))
        assert await delete(core, BOB, ["e", nested.id]) == ""
        assert (await counts(core, root), await counts(core, answer)) == ((1, 1), (0, 0))
        assert await delete(core, BOB, ["e", nested.id], at=at(1)) == ""
        assert await delete_in_group(core, ALICE, ["e", answer.id]) == ""
        assert (await counts(core, root), await counts(core, answer)) == ((0, 0), (0, 0))
