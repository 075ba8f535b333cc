"""PUT /api/users/me/channel-add-policy: what it changes, and its entry in the audit log: both or neither."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
import pytest

from relay.nostr.keys import SecretKey
from tests.support.http import Answer, Rig, new_key

PATH = "/api/users/me/channel-add-policy"
SHAPE = "Failed to deserialize the JSON body into the target type: "
JSON = {"Content-Type": "application/json"}


async def put(rig: Rig, key: SecretKey, policy: str) -> Answer:
    return await rig.request("PUT", PATH, key=key, json={"channel_add_policy": policy})


async def entries(rig: Rig) -> list[Any]:
    """What is durable at this moment, chained or not."""
    return [
        tuple(row)
        for row in await rig.con.fetch(
            "SELECT actor, event_id, kind, channel_id, metadata FROM ("
            "SELECT action, time_us, actor, event_id, kind, channel_id, metadata FROM audit_log UNION ALL "
            "SELECT action, time_us, actor, event_id, kind, channel_id, metadata FROM audit_outbox) AS either "
            "WHERE action = 'settings_changed' ORDER BY time_us"
        )
    ]


async def stored(rig: Rig, key: SecretKey) -> str | None:
    found: str | None = await rig.con.fetchval(
        "SELECT channel_add_policy::text FROM users WHERE pubkey = $1", bytes.fromhex(key.public_hex)
    )
    return found


async def test_every_policy(rig: Rig) -> None:
    me = new_key()
    for policy in ("nobody", "owner_only", "anyone"):
        found = await put(rig, me, policy)
        assert (found.status, found.json) == (200, {"channel_add_policy": policy, "agent_owner_pubkey": None})
        assert await stored(rig, me) == policy


async def test_an_agent_hears_who_owns_it(rig: Rig) -> None:
    me, owner = new_key(), new_key()
    await rig.get("/api/users/me/profile", key=owner)
    await rig.con.execute(
        "INSERT INTO users (pubkey, agent_owner_pubkey) VALUES ($1, $2)",
        bytes.fromhex(me.public_hex),
        bytes.fromhex(owner.public_hex),
    )
    found = await put(rig, me, "owner_only")
    assert found.json == {"channel_add_policy": "owner_only", "agent_owner_pubkey": owner.public_hex}


async def test_it_holds_for_the_next_invitation(rig: Rig) -> None:
    owner, me = new_key(), new_key()
    channel_id = str(uuid.uuid4())
    assert (await rig.submit(owner, 9007, [["h", channel_id], ["name", "general"]])).status == 200
    await put(rig, me, "nobody")
    refused = await rig.submit(owner, 9000, [["h", channel_id], ["p", me.public_hex]])
    assert refused.status in (400, 403), refused.body
    await put(rig, me, "anyone")
    assert (await rig.submit(owner, 9000, [["h", channel_id], ["p", me.public_hex]])).json["accepted"] is True


async def test_it_is_audited_before_it_is_answered(rig: Rig) -> None:
    me = new_key()
    for policy in ("nobody", "nobody"):
        assert (await put(rig, me, policy)).status == 200
    assert await entries(rig) == [(me.public_hex, None, None, None, '{"channel_add_policy":"nobody"}')] * 2


async def test_without_its_audit_entry_nothing_changes(rig: Rig) -> None:
    me = new_key()
    await put(rig, me, "nobody")
    await rig.con.execute(
        "ALTER TABLE audit_outbox ADD CONSTRAINT no_more CHECK (action <> 'settings_changed') NOT VALID"
    )
    found = await put(rig, me, "anyone")
    assert found.status >= 500
    assert set(found.json) == {"error"}
    assert await stored(rig, me) == "nobody"


async def test_not_while_the_relay_is_stopping(rig: Rig) -> None:
    me = new_key()
    rig.services.ingest.close()
    found = await put(rig, me, "nobody")
    assert (found.status, found.json) == (503, {"error": "shutting down"})
    assert await stored(rig, me) == "anyone"
    assert await entries(rig) == []


@pytest.mark.parametrize("policy", ["", "Anyone", "owner-only", "everyone", " nobody", "nobody\0"])
async def test_other_words(rig: Rig, policy: str) -> None:
    me = new_key()
    found = await put(rig, me, policy)
    assert (found.status, found.json) == (
        400,
        {"error": "channel_add_policy must be 'anyone', 'owner_only', or 'nobody'"},
    )
    assert (await stored(rig, me), await entries(rig)) == ("anyone", [])


@pytest.mark.parametrize(
    ("headers", "body", "status", "text"),
    [
        ({"Content-Type": "text/plain"}, b'{"channel_add_policy":"nobody"}', 415,
         "Expected request with `Content-Type: application/json`"),
        (JSON, b"", 400, "Failed to parse the request body as JSON: "),
        (JSON, b'"nobody"', 422, SHAPE + 'invalid type: string "nobody", expected a map'),
        (JSON, b"{}", 422, SHAPE + "missing field `channel_add_policy`"),
        (JSON, b'{"channel_add_policy":null}', 422,
         SHAPE + "channel_add_policy: invalid type: null, expected a string"),
        (JSON, b'{"channel_add_policy":["nobody"]}', 422,
         SHAPE + "channel_add_policy: invalid type: sequence, expected a string"),
    ],
)  # fmt: skip
async def test_it_is_read_before_anybody_signs_in(
    rig: Rig, headers: dict[str, str], body: bytes, status: int, text: str
) -> None:
    found = await rig.request("PUT", PATH, headers=headers, data=body)
    assert found.status == status
    assert found.text.startswith(text)
    assert found.headers["content-type"] == "text/plain; charset=utf-8"


async def test_statements(rig: Rig) -> None:
    """The sign-in is all that the main pool hears of it: the change belongs to an effect worker."""
    rig.statements.clear()
    found = await put(rig, new_key(), "nobody")
    assert orjson.loads(found.body)["channel_add_policy"] == "nobody"
    assert len(rig.statements) == 1, rig.statements
