"""`POST /api/tokens`, in the order in which it is told: how often, and what only the database knows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

import trio

from relay.nostr.keys import SecretKey
from relay.store import members, tokens
from tests.support.http import Answer, Rig, new_key
from tests.support.minting import AGENT_SCOPES, Clock, app_with, ask, ask_signed, wanted

# -- 8: how often ----------------------------------------------------------------------------------------------------


async def test_the_limit_of_an_hour(rig: Rig) -> None:
    clock, key = Clock(), new_key()
    app = app_with(rig, clock, mint_rate_limit=3)
    assert (await ask_signed(rig, key, app, name="")).status == 400  # was not counted
    clock.now += 10
    assert (await ask_signed(rig, key, app)).status == 201
    clock.now += 10
    # What goes wrong after the count has been counted.
    assert (await ask_signed(rig, key, app, expires_in_days=0)).status == 400
    assert (await ask_signed(rig, key, app, channel_ids=["x"])).status == 400
    clock.now += 0.5
    answer = await ask_signed(rig, key, app)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3590")
    assert answer.json == {
        "error": "rate_limited",
        "message": "Mint limit exceeded: 3 per hour. Try again in 3590 seconds.",
        "retry_after_seconds": 3590,
    }
    assert (await ask_signed(rig, new_key(), app)).status == 201  # another key has its own
    clock.now += 3589.4
    assert (await ask_signed(rig, key, app)).json["retry_after_seconds"] == 1
    clock.now += 0.1
    assert (await ask_signed(rig, key, app)).status == 201
    assert (await ask_signed(rig, key, app)).status == 429
    (entry,) = rig.services.ingest._notes.take(2**60, everything=True)
    assert (entry.action, entry.actor) == ("rate_limit_exceeded", key.public_hex)


async def test_a_limit_of_zero_is_none(rig: Rig) -> None:
    app, key = app_with(rig, mint_rate_limit=0), new_key()
    for _ in range(3):
        assert (await ask_signed(rig, key, app)).status == 201


# -- 9 to 14: what only the database knows ---------------------------------------------------------------------------


async def test_channels_of_which_the_caller_is_no_member(rig: Rig) -> None:
    key, other = new_key(), new_key()
    mine, open_one = await rig.channel(key), await rig.channel(other)
    unknown = str(uuid4())

    async def told(*channel_ids: str) -> tuple[int, dict[str, str]]:
        answer = await ask_signed(rig, key, channel_ids=list(channel_ids))
        return answer.status, answer.json

    not_found = (400, {"error": "invalid_channel_ids", "message": f"channel not found: {unknown}"})
    not_member = (403, {"error": "not_channel_member", "message": f"not a member of channel: {open_one}"})
    assert await told(mine, unknown, open_one) == not_found
    assert await told(mine, open_one, unknown) == not_member
    assert await told(unknown, "x") == not_found
    assert await told("x", unknown) == (400, {"error": "invalid_channel_ids", "message": "malformed UUID: x"})
    await members.put(rig.con, open_one, key.public_hex, "member", None)
    # Nothing remembers that it was refused.
    assert (await told(open_one))[0] == 201
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", open_one)
    assert await told(open_one) == (400, {"error": "invalid_channel_ids", "message": f"channel not found: {open_one}"})


async def test_an_owner_is_set_by_the_agent_itself_and_once(rig: Rig) -> None:
    agent, owner = new_key(), new_key().public_hex
    answer = await rig.post("/api/tokens", key=agent, json=wanted(owner_pubkey="x"))
    error = "owner_pubkey can only be set via NIP-98 auth (bootstrap mint)"
    assert (answer.status, answer.json) == (403, {"error": error})
    made = await ask_signed(rig, agent, scopes=AGENT_SCOPES, owner_pubkey=owner.upper())
    assert made.status == 201
    query = "SELECT encode(agent_owner_pubkey, 'hex') FROM users WHERE pubkey = $1"
    assert await rig.con.fetchval(query, bytes.fromhex(agent.public_hex)) == owner
    assert (await ask_signed(rig, agent, scopes=AGENT_SCOPES, owner_pubkey=owner)).status == 201
    answer = await ask_signed(rig, agent, scopes=AGENT_SCOPES, owner_pubkey=new_key().public_hex)
    assert (answer.status, answer.json) == (409, {"error": "agent already has a different owner"})
    # Owned since before: the scopes are needed whoever asks, with whatever credential.
    for place, missing in enumerate(AGENT_SCOPES):
        scopes = AGENT_SCOPES[:place] + AGENT_SCOPES[place + 1 :]
        answer = await ask(rig, token=made.json["token"], scopes=scopes)
        error = f"owned agents require the '{missing}' scope for controllability"
        assert (answer.status, answer.json) == (400, {"error": error})
    assert await rig.con.fetchval(query, bytes.fromhex(agent.public_hex)) == owner


async def test_ten_active_tokens(rig: Rig) -> None:
    key = new_key()
    made = [await ask_signed(rig, key) for _ in range(10)]
    assert {answer.status for answer in made} == {201}
    answer = await ask_signed(rig, key, scopes=AGENT_SCOPES, owner_pubkey="ab" * 32)
    error = {"error": "token_limit_exceeded", "message": "Maximum of 10 active tokens per pubkey"}
    assert (answer.status, answer.json) == (409, error)
    # All or nothing: the owner was not set either.
    assert await rig.con.fetchval("SELECT count(*) FROM users WHERE agent_owner_pubkey IS NOT NULL") == 0
    await tokens.revoke(rig.con, made[0].json["id"])
    assert (await ask_signed(rig, key)).status == 201
    await rig.con.execute("UPDATE api_tokens SET expires_at = now() - interval '1 s' WHERE id = $1", made[1].json["id"])
    assert (await ask_signed(rig, key)).status == 201
    assert (await ask_signed(rig, key)).status == 409
    assert (await ask_signed(rig, new_key())).status == 201


async def run_together(count: int, send: Callable[[], Awaitable[Answer]]) -> list[Answer]:
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await send())

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return answers


async def test_ten_active_tokens_whoever_asks_at_once(rig: Rig) -> None:
    key = new_key()
    answers = await run_together(30, lambda: ask_signed(rig, key))
    assert sorted(answer.status for answer in answers) == [201] * 10 + [409] * 20
    assert await rig.con.fetchval("SELECT count(*) FROM api_tokens") == 10
    columns = "SELECT 1 FROM"
    entries = await rig.con.fetch(f"{columns} audit_outbox UNION ALL {columns} audit_log")
    assert len(entries) == 10


async def test_one_owner_whoever_asks_at_once(rig: Rig) -> None:
    agent, owners = new_key(), [new_key().public_hex for _ in range(6)]
    waiting = list(owners)
    answers = await run_together(6, lambda: ask_signed(rig, agent, scopes=AGENT_SCOPES, owner_pubkey=waiting.pop()))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 5


async def test_agents_that_name_each_other_wait_for_nobody(rig: Rig) -> None:
    pairs: list[tuple[SecretKey, str]] = []
    for _ in range(5):
        one, two = new_key(), new_key()
        pairs += [(one, two.public_hex), (two, one.public_hex)]

    async def send() -> Answer:
        agent, owner = pairs.pop()
        return await ask_signed(rig, agent, scopes=AGENT_SCOPES, owner_pubkey=owner)

    assert {answer.status for answer in await run_together(10, send)} == {201}


async def test_nothing_is_made_while_the_relay_stops(rig: Rig) -> None:
    key = new_key()
    rig.services.ingest.close()
    answer = await ask_signed(rig, key)
    assert answer.status == 503
    assert await rig.con.fetchval("SELECT count(*) FROM api_tokens") == 0
