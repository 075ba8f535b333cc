"""Profiles, contacts, long form and reactions; the form of every event, and the doors."""

from __future__ import annotations

import random
import time
from functools import partial

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relay.ingest.content import read_profile
from relay.ingest.relay_events import system_message
from relay.ingest.types import Admission, Door
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Person, running_core


def at(offset: int) -> int:
    return int(time.time()) + offset


async def test_the_newest_profile_wins_and_fills_the_users_table(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, relay_url="ws://team.example") as core:
        first = ALICE.sign(0, '{"name":"al","nip05":"AL@team.example","picture":"p","about":"x"}', at=at(-5))
        second = ALICE.sign(0, '{"display_name":"Alice","nip05":"al@elsewhere.example"}', at=at(-4))
        old = ALICE.sign(0, '{"name":"old"}', at=at(-6))
        assert (await core.submit(ALICE, first)).message == ""
        row = await core.pool.fetchrow("SELECT display_name, nip05_handle, avatar_url, about FROM users")
        assert tuple(row.values()) == ("al", "al@team.example", "p", "x")
        assert (await core.submit(ALICE, second)).message == ""
        assert (await core.submit(ALICE, old)).message == "duplicate:"
        row = await core.pool.fetchrow("SELECT display_name, nip05_handle, avatar_url, about FROM users")
        assert tuple(row.values()) == ("Alice", None, None, None)
        assert await core.kinds() == [0]
        assert (await core.submit(ALICE, ALICE.sign(0, "not json"))).message == (
            "invalid: kind:0 content must be valid JSON"
        )


async def test_a_handle_that_is_taken_leaves_the_rest_of_the_profile(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, relay_url="ws://team.example") as core:
        for person, name in ((ALICE, "first"), (BOB, "second")):
            content = orjson.dumps({"name": name, "nip05": "boss@team.example"}).decode()
            assert (await core.submit(person, person.sign(0, content))).accepted
        rows = await core.pool.fetch("SELECT display_name, nip05_handle FROM users ORDER BY 1")
        assert [tuple(row.values()) for row in rows] == [("first", "boss@team.example"), ("second", None)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_profile(metadata: object) -> None:
    profile = read_profile(metadata, "team.example")
    assert profile.nip05_handle is None or profile.nip05_handle.endswith("@team.example")


def test_a_name_is_kept_as_long_as_a_list_can_bear_it() -> None:
    """Lists repeat it for each reaction and each DM; the rest of a profile stands once in an answer."""
    profile = read_profile({"name": "é" * 256, "about": "a" * 70_000, "picture": "p" * 70_000}, "team.example")
    assert profile.display_name == "é" * 255
    assert (len(profile.about or ""), len(profile.avatar_url or "")) == (70_000, 70_000)


async def test_of_two_contact_lists_in_one_second_the_lowest_id_stays(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        now = at(0)
        lists = sorted((ALICE.sign(3, "", [["p", f"{i:064x}"]], at=now) for i in range(6)), key=lambda e: e.id)
        for event in (lists[3], lists[5], lists[0], lists[1]):
            await core.submit(ALICE, event)
        stored = await core.pool.fetchval("SELECT encode(id, 'hex') FROM events WHERE deleted_at IS NULL")
        assert stored == lists[0].id


async def test_replacing_is_safe_under_concurrency(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        events = [ALICE.sign(3, str(i), at=at(-i)) for i in range(20)]
        async with trio.open_nursery() as nursery:
            for event in events:
                nursery.start_soon(core.submit, ALICE, event)
        rows = await core.pool.fetch("SELECT encode(id, 'hex') FROM events WHERE deleted_at IS NULL")
        assert [row[0] for row in rows] == [events[0].id]


async def test_one_reaction_for_a_target_a_key_and_an_emoji(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = ALICE.sign(9, "hello", [["h", CHANNEL]])
        await core.submit(ALICE, message)
        react = partial(BOB.sign, 7, tags=[["e", message.id]])
        first = react("+", at=at(-1))
        assert (await core.submit(BOB, first)).message == ""
        assert (await core.submit(BOB, first)).message == "duplicate:"
        again = await core.submit(BOB, react("", at=at(-2)))
        assert (again.accepted, again.message) == (False, "duplicate: reaction already exists")
        assert (await core.submit(BOB, react("x" * 65))).message == (
            "invalid: reaction emoji exceeds 64 characters (got 65)"
        )
        assert (await core.submit(BOB, BOB.sign(5, tags=[["e", first.id]]))).message == ""
        assert (await core.submit(BOB, react("+"))).message == ""
        for tags, text in [
            ([], "invalid: reaction must reference a target event via e tag"),
            ([["e", "zz"]], "invalid: malformed reaction target id"),
            ([["e", "ee" * 32]], "invalid: reaction target event not found"),
        ]:
            assert (await core.submit(BOB, BOB.sign(7, "+", tags))).message == text


async def test_reactions_need_access_to_the_channel_of_their_target(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        message = ALICE.sign(9, "secret", [["h", CHANNEL]])
        await core.submit(ALICE, message)
        outcome = await core.submit(CAROL, CAROL.sign(7, "+", [["e", message.id]]))
        assert outcome.message == "restricted: not a channel member"


async def test_access_is_asked_again_in_the_transaction(migrated_dsn: str) -> None:
    """What the caches said at admission may be over when the effect is done."""
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.add(ALICE, BOB)
        message = ALICE.sign(9, "hello", [["h", CHANNEL]])
        await core.submit(ALICE, message)
        admission = await core.ingest.admit(BOB.sign(7, "+", [["e", message.id]]), BOB.caller, Door.WEBSOCKET)
        assert isinstance(admission, Admission)
        await core.pool.execute("UPDATE channel_members SET removed_at = now() WHERE role = 'member'")
        assert (await core.ingest.perform(admission)).message == "restricted: not a channel member"
        assert not await core.directory.is_member(CHANNEL, BOB.pubkey)
        assert 7 not in await core.kinds()


@pytest.mark.parametrize("gone", ["deleted_at = now()", "expires_at = 1"])
async def test_nobody_reacts_to_what_is_gone(migrated_dsn: str, gone: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        message = ALICE.sign(9, "hello", [["h", CHANNEL]])
        await core.submit(ALICE, message)
        admission = await core.ingest.admit(BOB.sign(7, "+", [["e", message.id]]), BOB.caller, Door.WEBSOCKET)
        assert isinstance(admission, Admission)
        await core.pool.execute(f"UPDATE events SET {gone} WHERE kind = 9")
        # Gone between admission and effect, and gone before.
        for outcome in (
            await core.ingest.perform(admission),
            await core.submit(BOB, BOB.sign(7, "x", [["e", message.id]])),
        ):
            assert outcome.message == "invalid: reaction target event not found"


async def test_the_last_e_tag_of_a_reaction_is_its_target(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        messages = [ALICE.sign(9, text, [["h", CHANNEL]]) for text in ("first", "second")]
        for message in messages:
            await core.submit(ALICE, message)
        tags = [["e", messages[0].id], ["e", messages[1].id.upper()], ["e", "nonsense"]]
        assert (await core.submit(BOB, BOB.sign(7, "👍", tags))).message == ""
        row = await core.pool.fetchrow("SELECT encode(event_id, 'hex'), encode(pubkey, 'hex'), emoji FROM reactions")
        assert tuple(row.values()) == (messages[1].id, BOB.pubkey, "👍")
        assert await core.pool.fetchval("SELECT channel_id::text FROM events WHERE kind = 7") == CHANNEL


async def test_an_ephemeral_channel_lives_longer_by_a_reaction(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, ttl="3600")
        message = ALICE.sign(9, "hello", [["h", CHANNEL]])
        await core.submit(ALICE, message)
        before = await core.pool.fetchval("SELECT ttl_deadline FROM channels")
        reaction = BOB.sign(7, "+", [["e", message.id]])
        assert (await core.submit(BOB, reaction)).message == ""
        after = await core.pool.fetchval("SELECT ttl_deadline FROM channels")
        assert after > before
        # What is not stored prolongs nothing.
        for event in (reaction, BOB.sign(7, "", [["e", message.id]], at=at(-1))):
            assert (await core.submit(BOB, event)).message.startswith("duplicate:")
        assert await core.pool.fetchval("SELECT ttl_deadline FROM channels") == after


async def test_a_reaction_to_a_global_event_is_global(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        note = ALICE.sign(1, "hello")
        await core.submit(ALICE, note)
        # The h tag of a reaction says nothing: where its target is, it is.
        assert (await core.submit(BOB, BOB.sign(7, "x" * 64, [["e", note.id], ["h", CHANNEL]]))).message == ""
        assert await core.pool.fetchval("SELECT channel_id IS NULL FROM events WHERE kind = 7")


async def test_a_page_has_one_live_version_for_each_d(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        now = at(0)
        first, second, older, other, theirs, untitled, empty = events = [
            ALICE.sign(30023, "1", [["d", "x"], ["h", CHANNEL]], at=now - 5),
            ALICE.sign(30023, "2", [["d", "x"]], at=now - 3),
            ALICE.sign(30023, "older", [["d", "x"]], at=now - 4),
            ALICE.sign(30023, "other", [["d", "y"]], at=now - 5),
            BOB.sign(30023, "theirs", [["d", "x"]], at=now - 5),
            ALICE.sign(30023, "untitled", [], at=now - 5),
            ALICE.sign(30023, "the same as untitled", [["d", ""]], at=now - 4),
        ]
        people = [ALICE, ALICE, ALICE, ALICE, BOB, ALICE, ALICE]
        answers = [(await core.submit(person, event)).message for person, event in zip(people, events, strict=True)]
        assert answers == ["", "", "duplicate:", "", "", "", ""]
        rows = await core.pool.fetch("SELECT encode(id, 'hex'), channel_id FROM events WHERE deleted_at IS NULL")
        assert {row[0] for row in rows} == {second.id, other.id, theirs.id, empty.id}
        assert {row[1] for row in rows} == {None}
        assert (await core.submit(ALICE, first)).message == "duplicate:"
        assert not {older.id, untitled.id} & {row[0] for row in rows}


async def test_the_d_tag_of_a_page_is_bounded(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        longest, too_long = "é" * 512, "é" * 512 + "e"
        assert (await core.submit(ALICE, ALICE.sign(30023, "x", [["d", longest]]))).message == ""
        assert (await core.submit(ALICE, ALICE.sign(30023, "x", [["d", too_long]]))).message == (
            "invalid: d tag too long (1025 bytes, max 1024)"
        )
        # So long a value is no entry of an index of its own, and is found all the same.
        address = ["a", f"30023:{ALICE.pubkey}:{longest}"]
        for offset in (0, 1):
            assert (await core.submit(ALICE, ALICE.sign(5, tags=[address], at=at(offset)))).message == ""
        assert (await core.submit(ALICE, ALICE.sign(30023, "y", [["d", longest]], at=at(-9)))).message == (
            "invalid: event was deleted by its author"
        )


@pytest.mark.parametrize(
    ("kind", "door", "text"),
    [
        (1059, Door.HTTP, "invalid: kind 1059 is only accepted via WebSocket"),
        (20001, Door.HTTP, "invalid: kind 20001 is only accepted via WebSocket"),
        (20002, Door.HTTP, "restricted: unknown event kind"),
        (22242, Door.HTTP, "invalid: AUTH events cannot be submitted"),
        (22242, Door.WEBSOCKET, "invalid: AUTH events cannot be submitted via EVENT"),
        (44100, Door.WEBSOCKET, "invalid: membership notifications are relay-signed only"),
        (44101, Door.HTTP, "invalid: membership notifications are relay-signed only"),
        (39000, Door.WEBSOCKET, "restricted: unknown event kind"),
        (9, Door.WEBSOCKET, "invalid: channel-scoped events must include an h tag"),
    ],
)
async def test_kinds_and_doors(migrated_dsn: str, kind: int, door: Door, text: str) -> None:
    async with running_core(migrated_dsn) as core:
        assert (await core.submit(ALICE, ALICE.sign(kind), door)).message == text


async def test_form_is_checked_before_rights(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        event = ALICE.sign(1, "x")
        event.content = "y"
        assert (await core.submit(ALICE, event)).message.startswith("invalid: invalid event id: computed ")
        drift = "invalid: event timestamp too far from server time"
        assert (await core.submit(ALICE, ALICE.sign(1, at=at(-1000)))).message == drift
        assert (await core.submit(ALICE, ALICE.sign(1, at=at(1000)))).message == drift
        assert (await core.submit(ALICE, BOB.sign(1))).message == (
            "invalid: event pubkey does not match authenticated identity"
        )
        assert (await core.submit(ALICE, ALICE.sign(1, "a\0b"))).message == (
            "invalid: event must not contain NUL characters"
        )
        assert (await core.submit(ALICE, ALICE.sign(1, "é" * 131_073))).message == (
            "invalid: content exceeds maximum size of 262144 bytes (got 262146)"
        )
        assert (
            await core.submit(ALICE, ALICE.sign(1, '{"a":"\\u0000 \\"quotes\\" {braces}"}', [["t", 'a"\\,{}b']]))
        ).accepted
        stored = await core.pool.fetchval("SELECT tag_values FROM events WHERE kind = 1")
        assert stored == ['t:a"\\,{}b']


async def test_scopes_and_token_channels(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        reader = Person.number(5, scopes=frozenset({"messages:read"}))
        assert (await core.say(reader, "x")).message == "restricted: insufficient scope (need messages:write)"
        tied = Person.number(6, channel_ids=frozenset({"22222222-2222-4222-8222-222222222222"}))
        assert (await core.say(tied, "x")).message == "restricted: token does not have access to this channel"
        assert (await core.submit(tied, tied.sign(1))).message == (
            "restricted: channel-scoped tokens cannot publish global events"
        )


async def test_a_proxy_signs_for_others_at_any_time(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        proxy = Person.number(7, scopes=frozenset({"proxy:submit"}))
        assert (await core.submit(proxy, BOB.sign(9, "old", [["h", CHANNEL]], at=1_000_000))).message == ""
        assert (await core.submit(proxy, BOB.sign(9, "x", [["h", CHANNEL]], at=2**63))).message == (
            "invalid: event timestamp too far from server time"
        )


async def test_messages_to_an_archived_or_deleted_channel_are_refused(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.say(ALICE, "x")
        await core.pool.execute("UPDATE channels SET archived_at = now()")
        # Admission still believes its cache: the insert itself decides.
        assert (await core.say(ALICE, "y")).message == "restricted: not a channel member"
        assert (await core.say(ALICE, "z")).message == "invalid: channel is archived"
        await core.pool.execute("UPDATE channels SET deleted_at = now()")
        core.directory.clear()
        assert (await core.say(ALICE, "z")).message == "restricted: not a channel member"


def test_system_messages_are_compact_and_keep_their_order() -> None:
    event = system_message(ALICE.key, CHANNEL, 1, {"type": "member_joined", "actor": "a", "target": "b"})
    assert event.content == '{"type":"member_joined","actor":"a","target":"b"}'
    assert event.tags == [["h", CHANNEL]]


async def test_a_profile_with_escaped_nuls_is_saved_without_them(migrated_dsn: str) -> None:
    """The content has a backslash and digits, which is text; what it says has a NUL, which PostgreSQL cannot keep."""
    async with running_core(migrated_dsn, relay_url="ws://team.example") as core:
        content = '{"name":"a\\u0000b","about":"\\u0000","nip05":"x\\u0000@team.example","picture":"p"}'
        assert (await core.submit(ALICE, ALICE.sign(0, content))).message == ""
        row = await core.pool.fetchrow("SELECT display_name, about, nip05_handle, avatar_url FROM users")
        assert tuple(row.values()) == ("ab", "", None, "p")


async def test_ephemeral_events_are_asked_for_scope_first_and_never_for_the_time(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        typing = ALICE.sign(20002, "", [["h", CHANNEL]], at=at(-100_000))
        assert (await core.submit(ALICE, typing)).message == ""
        assert (await core.submit(BOB, BOB.sign(20001, "online"))).message == ""
        typing.content = "forged"
        assert (await core.submit(ALICE, typing)).message.startswith("invalid: invalid event id: computed ")
        reader = Person.number(1, scopes=frozenset({"messages:read"}))
        assert (await core.submit(reader, typing)).message == "restricted: insufficient scope for ephemeral events"


async def test_long_contents_are_stored_with_their_search_vector(migrated_dsn: str) -> None:
    """A text search vector ends at 1 MiB; words joined by hyphens, each of them new, make the most of the content."""
    words = (f"{random.randrange(46656):03x}-{random.randrange(46656):03x}" for _ in range(40_000))
    content = " ".join(words)[:262_144]
    async with running_core(migrated_dsn) as core:
        assert (await core.submit(ALICE, ALICE.sign(1, content))).message == ""
