"""Each group kind, row by row: what it stores, says and writes down, in order; who is told; what it refuses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from relay.access.identity import Caller
from relay.store import members
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, Person, running_core
from tests.support.groups import DAVE, OTHER, STATE, Told, edit, listening, people_in, told

H = ["h", CHANNEL]
NOT_MEMBER = "restricted: not a channel member"
STATE_KINDS = [str(kind) for kind in STATE]


def p(person: Person) -> list[str]:
    return ["p", person.pubkey]


async def submitted(core: Core, person: Person, kind: int, *tags: list[str]) -> Told:
    return await told(core, person, person.sign(kind, tags=[H, *tags]))


def notice(seen: Told, kind: int) -> tuple[list[list[str]], dict[str, Any]]:
    event = seen.event(kind)
    return event.tags, orjson.loads(event.content)


def audited(seen: Told, action: str) -> tuple[str | None, dict[str, Any]]:
    (found,) = [(actor, metadata) for name, _, actor, metadata in seen.entries if name == action]
    return found


async def roles(core: Core) -> dict[str, str]:
    return {member.pubkey: member.role for member in await members.active(core.pool, CHANNEL)}


async def test_put_user(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, BOB, 9000, p(DAVE), ["role", "bot"])
        assert (seen.outcome.accepted, seen.outcome.message) == (True, "")
        assert seen.actions == ["9000", "member_added", "40099", *STATE_KINDS, "44100"]
        assert seen.messages == [{"type": "member_joined", "actor": BOB.pubkey, "target": DAVE.pubkey}]
        assert audited(seen, "member_added") == (BOB.pubkey, {"target": DAVE.pubkey, "role": "bot"})
        assert notice(seen, 44100) == (
            [p(DAVE), H],
            {"type": "member_added", "channel_id": CHANNEL, "actor": BOB.pubkey},
        )
        people = [(ALICE, "owner"), (BOB, "admin"), (CAROL, "member"), (DAVE, "bot")]
        assert seen.event(39002).tags == [
            ["d", CHANNEL],
            *(["p", person.pubkey, "", role] for person, role in people),
        ]
        assert seen.event(39001).tags == [["d", CHANNEL], [*p(ALICE), "owner"], [*p(BOB), "admin"]]
        assert {event.pubkey for event in seen.events if event.kind != 9000} == {core.key.public_hex}
        assert await roles(core) == {person.pubkey: role for person, role in people}


@pytest.mark.parametrize(
    ("tags", "role"),
    [
        ([["p", DAVE.pubkey, "admin"]], "admin"),
        ([["p", DAVE.pubkey, "guest", "admin"]], "admin"),  # the highest of several
        ([["p", DAVE.pubkey, "wss://elsewhere.example"]], "member"),
        ([["p", DAVE.pubkey, "gardener"]], "member"),  # a role of another relay
        ([["p", DAVE.pubkey, "admin"], ["role", "bot"]], "bot"),
        ([["p", "nobody", "admin"], ["p", DAVE.pubkey]], "member"),
    ],
)
async def test_a_role_as_nip29_writes_it(migrated_dsn: str, tags: list[list[str]], role: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, ALICE, 9000, *tags)
        assert seen.outcome.accepted
        assert (await roles(core))[DAVE.pubkey] == role
        member = await submitted(core, CAROL, 9000, ["p", Person.number(9).pubkey, "owner"])
        assert member.outcome.message == "invalid: only owners/admins may grant elevated roles"


async def test_put_user_again_says_everything_again(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, BOB, 9000, p(CAROL), ["role", "admin"])
        assert seen.actions == ["9000", "member_added", "40099", *STATE_KINDS, "44100"]
        assert seen.messages == [{"type": "member_joined", "actor": BOB.pubkey, "target": CAROL.pubkey}]
        assert (await roles(core))[CAROL.pubkey] == "admin"


async def test_in_and_out_and_in_again_within_a_second(migrated_dsn: str) -> None:
    """The last word to the key is that it is in, and the channel is told each time."""
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        said = []
        for kind in (9000, 9001, 9000, 9001, 9000):
            seen = await submitted(core, ALICE, kind, p(DAVE), ["nonce", str(len(said))])
            said.append((seen.messages[0]["type"], seen.event(44100 if kind == 9000 else 44101).created_at))
        joined, removed = "member_joined", "member_removed"
        assert [kind for kind, _ in said] == [joined, removed, joined, removed, joined]
        assert sorted({at for _, at in said}) == [at for _, at in said], "each is later than the one before"


async def test_remove_user(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, BOB, 9001, p(CAROL))
        assert seen.actions == ["9001", "member_removed", "40099", *STATE_KINDS, "44101"]
        assert seen.messages == [{"type": "member_removed", "actor": BOB.pubkey, "target": CAROL.pubkey}]
        assert audited(seen, "member_removed") == (BOB.pubkey, {"target": CAROL.pubkey})
        assert notice(seen, 44101) == (
            [p(CAROL), H],
            {"type": "member_removed", "channel_id": CHANNEL, "actor": BOB.pubkey},
        )
        assert CAROL.pubkey not in await roles(core)


async def test_remove_oneself(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, CAROL, 9001, p(CAROL))
        assert seen.messages == [{"type": "member_left", "actor": CAROL.pubkey, "target": CAROL.pubkey}]
        assert seen.actions[-1] == "44101"


async def test_leave(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, CAROL, 9022)
        assert seen.actions == ["9022", "member_removed", "40099", *STATE_KINDS, "44101"]
        assert seen.messages == [{"type": "member_left", "actor": CAROL.pubkey}]
        assert notice(seen, 44101)[1]["actor"] == CAROL.pubkey
        assert CAROL.pubkey not in await roles(core)


async def test_join(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        seen = await submitted(core, DAVE, 9021)
        assert seen.actions == ["9021", "member_added", "40099", *STATE_KINDS, "44100"]
        assert seen.messages == [{"type": "member_joined", "actor": DAVE.pubkey, "target": DAVE.pubkey}]
        assert (await roles(core))[DAVE.pubkey] == "member"
        row = await core.pool.fetchrow(
            "SELECT invited_by FROM channel_members WHERE pubkey = $1", bytes.fromhex(DAVE.pubkey)
        )
        assert row["invited_by"] is None
        # Twice: stored, and nothing else happens.
        again = await told(core, BOB, BOB.sign(9021, tags=[H]))
        assert (again.outcome.accepted, again.actions) == (True, ["9021"])
        assert (await roles(core))[BOB.pubkey] == "admin"


async def test_create(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        tags = [["name", " n "], ["about", "a"], ["visibility", "private"], ["channel_type", "forum"], ["ttl", "60"]]
        seen = await submitted(core, ALICE, 9007, *tags)
        assert seen.outcome.message == ""
        assert seen.actions == ["9007", "channel_created", "member_added", "40099", *STATE_KINDS, "44100"]
        assert seen.messages == [{"type": "channel_created", "actor": ALICE.pubkey}]
        *names, deadline = seen.event(39000).tags
        assert names == [
            ["d", CHANNEL],
            ["name", " n "],
            ["about", "a"],
            ["private"],
            ["closed"],
            ["t", "forum"],
            ["ttl", "60"],
        ]
        assert deadline[0] == "ttl_deadline"
        assert notice(seen, 44100)[1] == {"type": "member_added", "channel_id": CHANNEL, "actor": ALICE.pubkey}
        assert await roles(core) == {ALICE.pubkey: "owner"}


async def test_create_without_a_name_for_it(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        outcome = await core.submit(ALICE, ALICE.sign(9007, tags=[["name", "n"]]))
        channel_id = await core.pool.fetchval("SELECT id::text FROM channels")
        assert (outcome.accepted, outcome.message) == (True, f"channel: {channel_id}")
        assert await core.pool.fetchval("SELECT channel_id::text FROM events WHERE kind = 9007") == channel_id


async def test_what_the_state_says_of_each_property(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        seen = await told(core, ALICE, ALICE.sign(9002, tags=[H, ["topic", "T"], ["purpose", "P"], ["ttl", "60"]]))
        *tags, deadline = seen.event(39000).tags
        assert tags == [
            ["d", CHANNEL],
            ["name", "general"],
            ["public"],
            ["closed"],
            ["t", "stream"],
            ["topic", "T"],
            ["purpose", "P"],
            ["ttl", "60"],
        ]
        assert deadline[0] == "ttl_deadline"
        assert deadline[1].endswith("+00:00")
        await core.ingest.open_dm(ALICE.caller, [BOB.pubkey])
        stored = await core.pool.fetchval(
            "SELECT tags FROM events WHERE kind = 39000 AND tag_values @> '{t:dm}' AND deleted_at IS NULL"
        )
        dm = orjson.loads(stored)
        assert dm[2:] == [["private"], ["hidden"], ["closed"], ["t", "dm"], p(ALICE), p(BOB)]


async def test_a_later_state_is_later_within_one_second(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        for number in range(4):
            await edit(core, ALICE, ["topic", str(number)])
        rows = await core.pool.fetch("SELECT created_at, tags, deleted_at FROM events WHERE kind = 39000 ORDER BY 1")
        assert len({row["created_at"] for row in rows}) == len(rows) == 5
        assert [row["deleted_at"] is None for row in rows] == [False] * 4 + [True]
        assert ["topic", "3"] in orjson.loads(rows[-1]["tags"])


async def test_state_that_was_deleted_within_the_second_is_told_again(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.pool.execute("UPDATE events SET deleted_at = now() WHERE kind BETWEEN 39000 AND 39002")
        await edit(core, ALICE, ["name", "general"])  # as it was: the same events again, but for their time
        assert await core.kinds("kind BETWEEN 39000 AND 39002") == STATE


@pytest.mark.parametrize(
    ("person", "kind", "tags", "text"),
    [
        (CAROL, 9000, [H, p(DAVE), ["role", "king"]], "invalid: invalid role: king"),
        (CAROL, 9000, [H], "invalid: missing p tag"),
        (CAROL, 9000, [H, ["p", "abc"]], "invalid: missing p tag"),
        (CAROL, 9000, [H, p(DAVE), ["role", "admin"]], "invalid: only owners/admins may grant elevated roles"),
        (CAROL, 9000, [H, p(DAVE), ["role", "owner"]], "invalid: only owners/admins may grant elevated roles"),
        (CAROL, 9000, [H, p(BOB), ["role", "member"]], "invalid: actor not authorized"),
        (BOB, 9000, [H, p(ALICE), ["role", "member"]], "invalid: actor not authorized"),
        (ALICE, 9000, [H, p(ALICE), ["role", "bot"]], "invalid: cannot remove the last owner"),
        (DAVE, 9000, [H, p(DAVE)], NOT_MEMBER),
        (ALICE, 9000, [["h", OTHER], p(DAVE)], NOT_MEMBER),
        (ALICE, 9000, [p(DAVE)], "invalid: channel-scoped events must include an h tag"),
        (BOB, 9001, [H], "invalid: missing p tag"),
        (CAROL, 9001, [H, p(BOB)], "invalid: actor not authorized"),
        (BOB, 9001, [H, p(ALICE)], "invalid: actor not authorized"),
        (ALICE, 9001, [H, p(DAVE)], "invalid: target is not an active member"),
        (ALICE, 9001, [H, p(ALICE)], "invalid: cannot remove the last owner"),
        (DAVE, 9001, [H, p(DAVE)], NOT_MEMBER),
        (DAVE, 9021, [H], "restricted: channel is private"),
        (DAVE, 9021, [["h", OTHER]], "invalid: channel not found"),
        (DAVE, 9021, [], "invalid: missing or invalid h tag"),
        (DAVE, 9021, [["h", "nothing"]], "invalid: missing or invalid h tag"),
        (ALICE, 9022, [H], "invalid: cannot remove the last owner"),
        (DAVE, 9022, [H], NOT_MEMBER),
        (ALICE, 9022, [], "invalid: channel-scoped events must include an h tag"),
        (ALICE, 9002, [["topic", "x"]], "invalid: channel-scoped events must include an h tag"),
        (ALICE, 9008, [], "invalid: channel-scoped events must include an h tag"),
        (DAVE, 9008, [H], NOT_MEMBER),
    ],
)
async def test_what_is_refused_in_a_private_channel_leaves_nothing(
    migrated_dsn: str, person: Person, kind: int, tags: list[list[str]], text: str
) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        before = await roles(core)
        seen = await told(core, person, person.sign(kind, tags=tags))
        assert (seen.outcome.accepted, seen.outcome.message) == (False, text)
        assert seen.entries == []
        assert await roles(core) == before


async def test_strangers_in_an_open_channel(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        inactive = "invalid: actor is not an active member"
        assert (await submitted(core, DAVE, 9022)).outcome.message == inactive
        assert (await submitted(core, DAVE, 9001, p(DAVE))).outcome.message == inactive
        assert (await submitted(core, DAVE, 9001, p(CAROL))).outcome.message == "invalid: actor not authorized"
        assert (await submitted(core, DAVE, 9008)).outcome.message == "invalid: only owner can delete group"


async def test_any_member_invites_into_a_private_channel(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        assert (await submitted(core, CAROL, 9000, p(DAVE))).outcome.accepted
        assert (await core.say(DAVE, "hello")).accepted


async def test_an_agents_owner_removes_it(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        await core.add(ALICE, DAVE, "bot")
        for person in (CAROL, DAVE):
            await core.pool.execute("INSERT INTO users (pubkey) VALUES ($1)", bytes.fromhex(person.pubkey))
        await core.pool.execute(
            "UPDATE users SET agent_owner_pubkey = $1 WHERE pubkey = $2",
            bytes.fromhex(CAROL.pubkey),
            bytes.fromhex(DAVE.pubkey),
        )
        assert (await submitted(core, CAROL, 9001, p(BOB))).outcome.message == "invalid: actor not authorized"
        assert (await submitted(core, CAROL, 9001, p(DAVE))).outcome.accepted
        assert DAVE.pubkey not in await roles(core)


@pytest.mark.parametrize("kind", [9001, 9022])
async def test_who_leaves_a_private_channel_is_cut_off_before_the_ok(migrated_dsn: str, kind: int) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        async with listening(core, CAROL) as reader:
            actor = ALICE if kind == 9001 else CAROL
            assert (await submitted(core, actor, kind, p(CAROL))).outcome.accepted
            assert not core.hub.may_receive(reader, CHANNEL)
            assert await reader.read(1) == [["CLOSED", "sub", "restricted: channel access revoked"]]
            await reader.read_nothing()


async def test_who_is_added_sees_it_happen(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        async with listening(core, BOB) as reader:
            assert (await submitted(core, ALICE, 9000, p(DAVE))).outcome.accepted
            kinds = [message[2]["kind"] for message in await reader.read(5)]
            assert kinds == [9000, 40099, *STATE]
        assert core.hub.audiences.may_receive(CHANNEL, DAVE.pubkey)


async def test_archiving_needs_a_larger_right_than_editing(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        writer = Person(ALICE.key, Caller(ALICE.pubkey, frozenset({"channels:write"}), ALICE.caller.method))
        assert (await submitted(core, writer, 9002, ["name", "n"])).outcome.accepted
        refused = await submitted(core, writer, 9002, ["archived", "true"])
        assert refused.outcome.message == "restricted: insufficient scope (need admin:channels)"
        refused = await submitted(core, writer, 9008)
        assert refused.outcome.message == "restricted: insufficient scope (need admin:channels)"


async def test_an_agent_that_nobody_may_add_adds_itself(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await people_in(core)
        await core.pool.execute(
            "INSERT INTO users (pubkey, channel_add_policy) VALUES ($1, 'nobody')", bytes.fromhex(DAVE.pubkey)
        )
        policy = "invalid: policy:nobody — this agent has disabled external channel additions"
        assert (await submitted(core, ALICE, 9000, p(DAVE))).outcome.message == policy
        assert (await submitted(core, DAVE, 9000, p(DAVE))).outcome.accepted
        assert (await roles(core))[DAVE.pubkey] == "member"


async def test_nobody_joins_a_dm(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        opened = await core.ingest.open_dm(ALICE.caller, [BOB.pubkey])
        outcome = await core.add(ALICE, CAROL, channel=opened.channel_id)
        assert outcome.message == "invalid: the participants of a DM do not change; open a new DM"
        outcome = await core.submit(CAROL, CAROL.sign(9021, tags=[["h", opened.channel_id]]))
        assert outcome.message == "restricted: channel is private"


async def test_a_bridge_lends_nobody_a_membership(migrated_dsn: str) -> None:
    """It may submit for others without being a member; what they may in the group is still their own."""
    bridge = Person.number(9, scopes=frozenset({"proxy:submit"}))
    async with running_core(migrated_dsn) as core:
        await people_in(core, "private")
        for kind, text in (
            (9000, "invalid: actor not authorized"),
            (9001, "invalid: actor not authorized"),
            (9008, "invalid: only owner can delete group"),
            (9022, "invalid: actor is not an active member"),
        ):
            assert (await core.submit(bridge, DAVE.sign(kind, tags=[H, p(CAROL)]))).message == text
        assert (await core.submit(bridge, DAVE.sign(9002, tags=[H, ["topic", "x"]]))).message == "invalid: not a member"
        assert (await core.submit(bridge, ALICE.sign(9001, tags=[H, p(CAROL)]))).accepted
