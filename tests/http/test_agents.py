"""GET /api/agents: which bots a caller hears of, with which channels, and what it costs."""

from __future__ import annotations

import pytest

from tests.support.http import Rig, new_key

BOTS = """
INSERT INTO channel_members (channel_id, pubkey, role)
SELECT unnest($1::text[])::uuid, sha256(n::text::bytea), 'bot' FROM generate_series(1, $2::int) n"""


async def add_bot(rig: Rig, pubkey: str, *channel_ids: str) -> None:
    await rig.con.execute(
        "INSERT INTO channel_members (channel_id, pubkey, role) SELECT c::uuid, $2, 'bot' FROM unnest($1::text[]) c",
        list(channel_ids), bytes.fromhex(pubkey),
    )  # fmt: skip


async def test_every_key_and_the_order(rig: Rig) -> None:
    me = new_key()
    bots = sorted(new_key().public_hex for _ in range(3))
    zoo, attic = await rig.channel(me, "zoo"), await rig.channel(me, "attic", visibility="private")
    for bot in bots:
        await add_bot(rig, bot, zoo, attic)
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name, agent_type, capabilities) VALUES ($1, 'Botty', 'claude', $2)",
        bytes.fromhex(bots[2]), '["search", 1, null, ["x"], "write"]',
    )  # fmt: skip
    rig.services.hub.presence.update(bots[1], "thinking")
    found = await rig.get("/api/agents", key=me)
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    nameless = {"agent_type": "", "channels": ["attic", "zoo"], "channel_ids": [attic, zoo], "capabilities": []}
    assert found.json == [
        {
            "pubkey": bots[2],
            "name": "Botty",
            "agent_type": "claude",
            "channels": ["attic", "zoo"],
            "channel_ids": [attic, zoo],
            "capabilities": ["search", "write"],
            "status": "offline",
        },
        {"pubkey": bots[0], "name": f"agent-{bots[0][:8]}", "status": "offline"} | nameless,
        {"pubkey": bots[1], "name": f"agent-{bots[1][:8]}", "status": "thinking"} | nameless,
    ]


@pytest.mark.parametrize("capabilities", ["null", '"search"', "{}", "[]", "7"])
async def test_capabilities_that_are_none(rig: Rig, capabilities: str) -> None:
    me, bot = new_key(), new_key().public_hex
    await add_bot(rig, bot, await rig.channel(me))
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name, capabilities) VALUES ($1, '', $2)", bytes.fromhex(bot), capabilities
    )
    (row,) = (await rig.get("/api/agents", key=me)).json
    assert (row["name"], row["capabilities"]) == ("", [])


async def test_only_what_the_caller_can_read(rig: Rig) -> None:
    """A bot elsewhere is not there at all; of the others only the channels that the caller can read too."""
    me, stranger = new_key(), new_key()
    bot, hermit, gone, person = (new_key().public_hex for _ in range(4))
    public = await rig.channel(stranger, "public")
    mine = await rig.channel(me, "mine", visibility="private", others=(person,))
    theirs = await rig.channel(stranger, "theirs", visibility="private")
    deleted = await rig.channel(me, "deleted")
    await add_bot(rig, bot, public, mine, theirs, deleted)
    await add_bot(rig, hermit, theirs)
    await add_bot(rig, gone, mine)
    await rig.con.execute("UPDATE channel_members SET removed_at = now() WHERE pubkey = $1", bytes.fromhex(gone))
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", deleted)

    async def seen(**who: object) -> dict[str, list[str]]:
        found = await rig.get("/api/agents", **who)
        assert found.status == 200
        return {row["pubkey"]: row["channel_ids"] for row in found.json}

    assert await seen(key=me) == {bot: [mine, public]}
    assert await seen(key=stranger) == {bot: [public, theirs], hermit: [theirs]}
    assert await seen(token=await rig.mint(me, ["channels:read"], [mine, theirs])) == {bot: [mine]}
    assert await seen(token=await rig.mint(me, ["channels:read"], [])) == {}


async def test_needs_a_caller_and_the_right(rig: Rig) -> None:
    assert (await rig.get("/api/agents")).json == {"error": "authentication required"}
    found = await rig.get("/api/agents", token=await rig.mint(new_key(), ["users:read"]))
    assert (found.status, found.json["error"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("bots", [0, 1, 20, 200])
async def test_two_statements(rig: Rig, bots: int) -> None:
    me = new_key()
    await rig.con.execute(BOTS, [await rig.channel(me, f"{n}") for n in range(20)], bots)
    token = await rig.mint(me, ["channels:read"])
    rig.statements.clear()
    rows = (await rig.get("/api/agents", token=token)).json
    assert len(rows) == bots
    assert all(len(row["channel_ids"]) == len(set(row["channel_ids"])) == 20 for row in rows)
    assert len(rig.statements) == 2, rig.statements


async def test_at_most_a_thousand(rig: Rig) -> None:
    me = new_key()
    await rig.con.execute(BOTS, [await rig.channel(me)], 1003)
    rows = (await rig.get("/api/agents", key=me)).json
    assert [row["pubkey"] for row in rows] == sorted(row["pubkey"] for row in rows)
    assert len(rows) == 1000
