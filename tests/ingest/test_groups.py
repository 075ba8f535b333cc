"""NIP-29 groups: who may create, add, remove, join and leave, and what the relay makes of it."""

from __future__ import annotations

import orjson
import pytest
import trio

from relay.asyncpg_trio import connect
from relay.audit.verify import verify
from relay.store import members
from tests.support.core import ALICE, BOB, CAROL, CHANNEL, Core, Person, running_core

STATE = [39000, 39001, 39002]


async def audit_actions(core: Core) -> list[str]:
    core.ingest.close()
    with trio.fail_after(5):
        while await core.pool.fetchval("SELECT count(*) FROM audit_outbox"):
            await trio.sleep(0.01)
    return [row[0] for row in await core.pool.fetch("SELECT action FROM audit_log ORDER BY seq")]


async def test_create_stores_channel_owner_and_relay_events(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        assert (await core.create(ALICE)).message == ""
        assert await core.kinds() == [9007, *STATE, 40099, 44100]
        assert await core.pool.fetchval("SELECT role::text FROM channel_members") == "owner"
        content = await core.pool.fetchval("SELECT content FROM events WHERE kind = 40099")
        assert orjson.loads(content) == {"type": "channel_created", "actor": ALICE.pubkey}
        notice = await core.pool.fetchrow("SELECT channel_id, tags FROM events WHERE kind = 44100")
        assert notice["channel_id"] is None
        assert orjson.loads(notice["tags"]) == [["p", ALICE.pubkey], ["h", CHANNEL]]
        actions = await audit_actions(core)
        assert sorted(actions) == sorted(["channel_created", "member_added"] + 6 * ["event_created"])
        assert actions[0] == "event_created"


async def test_create_again_is_refused_and_the_same_event_is_a_duplicate(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        event = ALICE.sign(9007, tags=[["h", CHANNEL], ["name", "x"]])
        assert (await core.submit(ALICE, event)).message == ""
        assert (await core.submit(ALICE, event)).message == "duplicate:"
        other = await core.create(BOB)
        assert (other.accepted, other.message) == (False, "duplicate: channel already exists")


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ([], "invalid: channel name is required"),
        ([["name", "  "]], "invalid: channel name is required"),
        ([["name", "n"], ["visibility", "secret"]], "invalid visibility: secret"),
        ([["name", "n"], ["visibility", ""]], "invalid visibility: "),
        ([["name", "n"], ["channel_type", "dm"]], "invalid channel_type: dm"),
        ([["name", "n"], ["channel_type", ""]], "invalid channel_type: "),
        ([["name", "n"], ["ttl", "-1"]], "invalid: invalid ttl value: -1 (must be a positive integer of seconds)"),
        ([["name", "n" * 256]], "invalid: channel name exceeds 255 characters"),
        ([["name", "n"], ["about", "é" * 16_385]], "invalid: channel about exceeds 32768 bytes"),
        (
            [["name", "n"], ["h", "00000000-0000-0000-0000-000000000000"]],
            "invalid: channel id must not be the nil UUID",
        ),
    ],
)
async def test_create_refusals(migrated_dsn: str, tags: list[list[str]], text: str) -> None:
    async with running_core(migrated_dsn) as core:
        outcome = await core.submit(ALICE, ALICE.sign(9007, tags=tags))
        assert (outcome.accepted, outcome.message) == (False, text)
        assert await core.kinds() == []


async def test_a_member_of_a_private_channel_talks_and_a_stranger_does_not(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        assert (await core.say(BOB, "hello")).message == "restricted: not a channel member"
        assert (await core.add(ALICE, BOB)).accepted
        assert (await core.say(BOB, "hello")).accepted
        assert (await core.say(CAROL, "hello")).message == "restricted: not a channel member"


async def test_join_and_leave(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        join = BOB.sign(9021, tags=[["h", CHANNEL]])
        assert (await core.submit(BOB, join)).accepted
        assert await core.directory.is_member(CHANNEL, BOB.pubkey)
        leave = BOB.sign(9022, tags=[["h", CHANNEL]])
        assert (await core.submit(BOB, leave)).accepted
        assert not await core.directory.is_member(CHANNEL, BOB.pubkey)
        again = await core.submit(BOB, BOB.sign(9022, "x", tags=[["h", CHANNEL]]))
        assert again.message == "invalid: actor is not an active member"
        assert (await core.submit(ALICE, ALICE.sign(9022, tags=[["h", CHANNEL]]))).message == (
            "invalid: cannot remove the last owner"
        )
        rows = await core.pool.fetch(
            "SELECT kind, created_at, deleted_at IS NULL AS live FROM events WHERE kind = 39002"
        )
        times = sorted(row["created_at"] for row in rows)
        assert len(set(times)) == len(times) == 3
        assert [row["created_at"] for row in rows if row["live"]] == [times[-1]]


async def test_private_channels_are_not_joined(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        outcome = await core.submit(BOB, BOB.sign(9021, tags=[["h", CHANNEL]]))
        assert outcome.message == "restricted: channel is private"
        outcome = await core.submit(BOB, BOB.sign(9021))
        assert outcome.message == "invalid: missing or invalid h tag"
        outcome = await core.submit(BOB, BOB.sign(9021, tags=[["h", CHANNEL[:-1] + "2"]]))
        assert outcome.message == "invalid: channel not found"


async def test_two_owners_cannot_leave_at_once(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        assert (await core.add(ALICE, BOB, "owner")).accepted
        outcomes = []

        async def leave(person: object) -> None:
            outcomes.append((await core.submit(person, person.sign(9022, tags=[["h", CHANNEL]]))).accepted)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, ALICE)
            nursery.start_soon(leave, BOB)
        assert sorted(outcomes) == [False, True]
        assert await core.pool.fetchval("SELECT count(*) FROM channel_members WHERE removed_at IS NULL") == 1


async def test_roles_are_given_and_taken_by_those_who_may(migrated_dsn: str) -> None:
    elevated = "invalid: only owners/admins may grant elevated roles"
    unauthorized = "invalid: actor not authorized"
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        assert (await core.add(BOB, CAROL)).accepted  # anybody may invite into an open channel
        assert (await core.add(CAROL, BOB, "admin")).message == elevated
        assert (await core.add(ALICE, BOB, "admin")).accepted
        assert (await core.add(BOB, ALICE, "member")).message == unauthorized  # an admin does not touch an owner
        assert (await core.add(BOB, BOB, "owner")).message == unauthorized
        assert (await core.add(CAROL, BOB, "member")).message == unauthorized
        assert (await core.add(BOB, CAROL, "guest")).accepted
        assert (await core.add(ALICE, ALICE, "member")).message == "invalid: cannot remove the last owner"
        assert (await core.add(ALICE, BOB, "king")).message == "invalid: invalid role: king"
        # Without a role an existing member keeps the one he has.
        assert (await core.add(CAROL, BOB)).accepted
        assert (
            await core.pool.fetchval(
                "SELECT role::text FROM channel_members WHERE pubkey = $1", bytes.fromhex(BOB.pubkey)
            )
            == "admin"
        )


async def test_removal_needs_rights_and_a_member(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)

        async def remove(actor: object, *target: object) -> str:
            tags = [["h", CHANNEL], *(["p", person.pubkey] for person in target)]
            return (await core.submit(actor, actor.sign(9001, tags=tags))).message

        assert await remove(ALICE) == "invalid: missing p tag"
        assert await remove(BOB, ALICE) == "invalid: actor not authorized"
        assert await remove(ALICE, BOB) == "invalid: target is not an active member"
        await core.add(ALICE, BOB, "admin")
        assert await remove(BOB, ALICE) == "invalid: actor not authorized"
        assert await remove(ALICE, ALICE) == "invalid: cannot remove the last owner"
        assert await remove(ALICE, BOB) == ""
        assert await remove(BOB, BOB) == "invalid: actor is not an active member"


async def test_agents_decide_who_adds_them(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE)
        await core.pool.execute("INSERT INTO users (pubkey) VALUES ($1)", bytes.fromhex(CAROL.pubkey))
        for policy, owner, text in [
            ("nobody", None, "invalid: policy:nobody — this agent has disabled external channel additions"),
            ("owner_only", None, "invalid: policy:owner_only — agent has no owner set"),
            ("owner_only", CAROL, "invalid: policy:owner_only — only the agent owner can add this agent"),
            ("owner_only", ALICE, ""),
        ]:
            await core.pool.execute(
                "INSERT INTO users (pubkey) VALUES ($1) ON CONFLICT DO NOTHING", bytes.fromhex(ALICE.pubkey)
            )
            await core.pool.execute(
                "INSERT INTO users (pubkey, channel_add_policy, agent_owner_pubkey) VALUES ($1, $2, $3) "
                "ON CONFLICT (pubkey) DO UPDATE SET channel_add_policy = $2, agent_owner_pubkey = $3",
                bytes.fromhex(BOB.pubkey),
                policy,
                owner and bytes.fromhex(owner.pubkey),
            )
            assert (await core.add(ALICE, BOB)).message == text


async def test_every_stored_event_has_one_audit_entry_and_the_chain_holds(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.add(ALICE, BOB)
        await core.say(BOB, "hello")
        await core.submit(BOB, BOB.sign(9022, tags=[["h", CHANNEL]]))
    con = await connect(migrated_dsn)
    assert await con.fetchval("SELECT count(*) FROM audit_outbox") == 0
    assert (
        await con.fetchval(
            "SELECT count(*) FROM events e FULL JOIN (SELECT event_id, count(*) AS n FROM audit_log "
            "WHERE action = 'event_created' GROUP BY event_id) a ON a.event_id = encode(e.id, 'hex') "
            "WHERE e.id IS NULL OR a.n IS DISTINCT FROM 1"
        )
        == 0
    )
    report = await verify(con)
    assert report.ok, report.summary()
    con.terminate()


async def test_the_operator_can_fix_the_life_of_ephemeral_channels(migrated_dsn: str) -> None:
    async with running_core(migrated_dsn, ephemeral_ttl_override=77) as core:
        await core.create(ALICE, ttl="3600")
        await core.create(ALICE, CHANNEL[:-1] + "2")
        assert [row[0] for row in await core.pool.fetch("SELECT ttl_seconds FROM channels ORDER BY id")] == [77, None]


async def test_many_changes_at_once_neither_deadlock_nor_disagree(migrated_dsn: str) -> None:
    """Joins, leaves, roles, reactions and messages on the same and on different channels: whatever their order, every
    one is answered, and the fan-out's idea of the members is the table's."""
    people = [Person.number(number) for number in range(10, 22)]
    others = [CHANNEL[:-1] + digit for digit in "234"]
    async with running_core(migrated_dsn) as core:
        for channel in (CHANNEL, *others):
            await core.create(ALICE, channel, "open", ttl="1000")
        await core.pool.execute("UPDATE channels SET visibility = 'private'")
        core.directory.clear()
        await core.hub.watch([CHANNEL, *others])
        failures: list[str] = []

        async def live(person: Person) -> None:
            for turn in range(4):
                for channel in (CHANNEL, others[turn % 3]):
                    added = ALICE.sign(9000, f"{turn}", [["h", channel], ["p", person.pubkey]])
                    outcomes = [await core.submit(ALICE, added)]
                    message = person.sign(9, f"{turn}", [["h", channel]])
                    outcomes.append(await core.submit(person, message))
                    outcomes.append(await core.submit(person, person.sign(7, f"{turn}", [["e", message.id]])))
                    if turn % 2:
                        outcomes.append(await core.submit(person, person.sign(9022, f"{turn}", [["h", channel]])))
                    failures.extend(outcome.message for outcome in outcomes if not outcome.accepted)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for person in people:
                    nursery.start_soon(live, person)
        assert failures == []
        for channel in (CHANNEL, *others):
            stored = {member.pubkey for member in await members.active(core.pool, channel)}
            assert core.hub.audiences._records[channel].members == stored
        assert (
            await core.pool.fetchval(
                "SELECT count(*) FROM events e WHERE 1 <> "
                "(SELECT count(*) FROM (SELECT event_id, action FROM audit_log "
                "UNION ALL SELECT event_id, action FROM audit_outbox) a "
                "WHERE a.event_id = encode(e.id, 'hex') AND a.action = 'event_created')"
            )
            == 0
        )


async def test_a_membership_change_without_an_answer_keeps_its_place(
    migrated_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob is added and the COMMIT is not answered; while the outcome is looked up he is removed. Told to the fan-out in
    the wrong order, these two would leave a removed key among those who receive."""
    from relay.asyncpg_trio.transaction import Transaction
    from relay.store import outcome as outcomes

    original, asked, broken = Transaction._commit, outcomes._status, []

    async def commit(self: Transaction) -> None:
        con = self._connection
        if not broken and await con.fetchval("SELECT count(*) FROM channel_members WHERE removed_at IS NULL") == 2:
            broken.append(True)
            await con.execute("COMMIT")
            con.terminate()
        await original(self)

    async def status(con: object, xid: int) -> object:
        await trio.sleep(0.5)  # long enough for the removal to overtake
        return await asked(con, xid)

    async with running_core(migrated_dsn) as core:
        await core.create(ALICE, visibility="private")
        await core.hub.watch([CHANNEL])
        monkeypatch.setattr(Transaction, "_commit", commit)
        monkeypatch.setattr(outcomes, "_status", status)
        removal = ALICE.sign(9001, tags=[["h", CHANNEL], ["p", BOB.pubkey]])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.add, ALICE, BOB)
            with trio.fail_after(5):
                while not broken:
                    await trio.sleep(0.01)
                while (await core.submit(ALICE, removal)).message == "invalid: target is not an active member":
                    await trio.sleep(0.01)
        assert core.hub.audiences._records[CHANNEL].members == {ALICE.pubkey}
