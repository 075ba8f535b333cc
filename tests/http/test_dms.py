"""/api/dms: opening, extending, listing page by page, hiding, and what a restricted token may do of it."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from relay.http.values import rfc3339_seconds
from relay.nostr.keys import SecretKey
from tests.support.http import Rig, new_key

NOTE = "A new DM was created with the expanded participant set. The original DM is unchanged."


async def opened(rig: Rig, me: SecretKey, *others: SecretKey) -> dict[str, Any]:
    found = await rig.post("/api/dms", key=me, json={"pubkeys": [key.public_hex for key in others]})
    assert found.status in (200, 201), found.body
    assert found.json["created"] is (found.status == 201)
    return dict(found.json)


async def listed(rig: Rig, key: SecretKey, query: str = "") -> tuple[list[str], str | None]:
    found = await rig.get(f"/api/dms{query}", key=key)
    assert found.status == 200, found.body
    return [dm["channel_id"] for dm in found.json["dms"]], found.json["next_cursor"]


async def test_open_and_open_again(rig: Rig) -> None:
    me, other = new_key(), new_key()
    first = await opened(rig, me, other)
    assert set(first) == {"channel_id", "created", "participants"}
    assert first["created"] is True
    assert {each["pubkey"] for each in first["participants"]} == {me.public_hex, other.public_hex}
    assert all(each["display_name"] is None and each["role"] == "member" for each in first["participants"])
    # The other way round, in capitals and with oneself named too, it is the same set of people.
    again = await rig.post("/api/dms", key=other, json={"pubkeys": [me.public_hex.upper(), other.public_hex]})
    assert (again.status, again.json) == (200, first | {"created": False})


async def test_opening_is_audited_and_seen_at_once(rig: Rig) -> None:
    me, other = new_key(), new_key()
    assert await rig.services.directory.accessible(other.public_hex) == frozenset()
    dm = (await opened(rig, me, other))["channel_id"]
    assert dm in await rig.services.directory.accessible(other.public_hex)
    assert [row["id"] for row in (await rig.get("/api/channels", key=other)).json] == [dm]


async def test_a_hidden_dm_comes_back_when_it_is_opened(rig: Rig) -> None:
    me, other = new_key(), new_key()
    dm = (await opened(rig, me, other))["channel_id"]
    for _ in range(2):
        found = await rig.post(f"/api/dms/{dm}/hide", key=me, data=b"ignored")
        assert (found.status, found.body) == (204, b"")
    assert await listed(rig, me) == ([], None)
    assert (await rig.get("/api/channels", key=me)).json == []
    assert (await listed(rig, other))[0] == [dm]
    assert (await opened(rig, me, other))["created"] is False
    assert (await listed(rig, me))[0] == [dm]


async def test_errors_of_opening(rig: Rig) -> None:
    me = new_key()
    keys = [new_key().public_hex for _ in range(9)]
    cases: list[tuple[list[str], str]] = [
        ([], "pubkeys must contain at least 1 other participant"),
        (keys, "pubkeys may contain at most 8 other participants (9 total including self)"),
        (["xyz"], "invalid pubkey hex: xyz"),
        (["abc"], "invalid pubkey hex: abc"),
        ([keys[0] + " "], f"invalid pubkey hex: {keys[0]} "),
        (["abcd"], "pubkey must be 32 bytes (64 hex chars): abcd"),
        ([me.public_hex], "pubkeys must contain at least 1 participant other than yourself"),
        ([me.public_hex, me.public_hex.upper()], "pubkeys must contain at least 1 participant other than yourself"),
    ]
    for pubkeys, text in cases:
        found = await rig.post("/api/dms", key=me, json={"pubkeys": pubkeys})
        assert (found.status, found.json) == (400, {"error": text})
    # Whether a key is on the curve is not asked: the DM waits for whoever comes with it.
    assert (await rig.post("/api/dms", key=me, json={"pubkeys": ["00" * 32]})).status == 201
    assert (await rig.post("/api/dms", key=me, json={"pubkeys": keys[:8]})).status == 201


NO_JSON = "Expected request with `Content-Type: application/json`"
SHAPE = "Failed to deserialize the JSON body into the target type: "


@pytest.mark.parametrize(
    ("headers", "body", "status", "text"),
    [
        ({"Content-Type": "text/plain"}, b'{"pubkeys":[]}', 415, NO_JSON),
        ({}, b'{"pubkeys":[]}', 415, NO_JSON),
        ({"Content-Type": "application/json"}, b"", 400, "Failed to parse the request body as JSON: "),
        ({"Content-Type": "application/json"}, b'{"pubkeys":[]} x', 400, "Failed to parse the request body as JSON: "),
        ({"Content-Type": "application/json"}, b"[]", 422, SHAPE + "invalid type: sequence"),
        ({"Content-Type": "application/json; charset=utf-8"}, b"{}", 422, SHAPE + "missing field `pubkeys`"),
        ({"Content-Type": "application/x+json"}, b'{"pubkeys":"x"}', 422,
         SHAPE + 'pubkeys: invalid type: string "x", expected a sequence'),
        ({"Content-Type": "application/json"}, b'{"pubkeys":["x",1]}', 422,
         SHAPE + "pubkeys[1]: invalid type: integer `1`, expected a string"),
    ],
)  # fmt: skip
async def test_bodies_are_read_before_anybody_signs_in(
    rig: Rig, headers: dict[str, str], body: bytes, status: int, text: str
) -> None:
    for path in ("/api/dms", f"/api/dms/{uuid.uuid4()}/members"):
        found = await rig.post(path, headers=headers, data=body)
        assert found.status == status
        assert found.text.startswith(text)
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
    well_formed = await rig.post("/api/dms", json={"pubkeys": [], "more": 1})
    assert well_formed.status == 401


async def test_extending_makes_another_dm(rig: Rig) -> None:
    me, second, third = new_key(), new_key(), new_key()
    dm = (await opened(rig, me, second))["channel_id"]
    found = await rig.post(f"/api/dms/{dm.upper()}/members", key=second, json={"pubkeys": [third.public_hex]})
    assert (found.status, found.json["created"], found.json["note"]) == (201, True, NOTE)
    assert found.json["channel_id"] != dm
    assert len(found.json["participants"]) == 3
    again = await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": [third.public_hex, me.public_hex]})
    assert (again.status, again.json["channel_id"]) == (200, found.json["channel_id"])
    same = await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": [second.public_hex]})
    assert (same.status, same.json["channel_id"], same.json["note"]) == (200, dm, NOTE)


async def test_errors_of_extending(rig: Rig) -> None:
    me, other, stranger = new_key(), new_key(), new_key()
    dm = (await opened(rig, me, other))["channel_id"]
    stream = await rig.channel(me)
    many = [new_key().public_hex for _ in range(8)]
    cases: list[tuple[SecretKey, str, list[str], int, str]] = [
        (me, "no-uuid", [], 400, "invalid channel_id format"),
        (me, dm, [], 400, "pubkeys must contain at least 1 new participant"),
        (stranger, dm, ["bad"], 403, "not a member of this DM"),
        (me, str(uuid.uuid4()), ["bad"], 403, "not a member of this DM"),
        (stranger, stream, ["bad"], 403, "not a member of this DM"),
        (me, stream, ["bad"], 400, "channel is not a DM"),
        (me, dm, ["bad"], 400, "invalid pubkey hex: bad"),
        (me, dm, many, 422, "DM supports at most 9 participants"),
    ]
    for key, channel_id, pubkeys, status, text in cases:
        found = await rig.post(f"/api/dms/{channel_id}/members", key=key, json={"pubkeys": pubkeys})
        assert (found.status, found.json) == (status, {"error": text}), text
    assert (await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": many[:7]})).status == 201


async def test_memory_that_is_behind_lets_nobody_extend(rig: Rig) -> None:
    """Another process removed the caller; ours has not heard of it yet."""
    me, other = new_key(), new_key()
    dm = (await opened(rig, me, other))["channel_id"]
    assert await rig.services.directory.is_member(dm, me.public_hex)
    await rig.con.execute(
        "UPDATE channel_members SET removed_at = now() WHERE pubkey = $1", bytes.fromhex(me.public_hex)
    )
    found = await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": [new_key().public_hex]})
    assert (found.status, found.json) == (403, {"error": "not a member of this DM"})
    found = await rig.post(f"/api/dms/{dm}/hide", key=me)
    assert (found.status, found.json) == (403, {"error": "not a member of this DM"})


async def test_a_membership_that_outlived_its_channel(rig: Rig) -> None:
    me, other = new_key(), new_key()
    dm = (await opened(rig, me, other))["channel_id"]
    directory = rig.services.directory
    assert await directory.is_member(dm, me.public_hex)
    await rig.con.execute("UPDATE channels SET deleted_at = now()")
    directory.invalidate_channel(dm)
    found = await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": [other.public_hex]})
    assert (found.status, found.json) == (404, {"error": "DM not found"})


async def test_extending_a_dm_that_all_others_left_by_oneself(rig: Rig) -> None:
    me = new_key()
    dm = await rig.channel(me, "DM", channel_type="dm", visibility="private")
    found = await rig.post(f"/api/dms/{dm}/members", key=me, json={"pubkeys": [me.public_hex]})
    assert (found.status, found.json) == (
        400,
        {"error": "pubkeys must contain at least 1 participant other than yourself"},
    )


async def test_errors_of_hiding(rig: Rig) -> None:
    me, stranger = new_key(), new_key()
    dm = (await opened(rig, me, new_key()))["channel_id"]
    stream = await rig.channel(me)
    gone = (await opened(rig, me, new_key()))["channel_id"]
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", gone)
    for key, channel_id, status, text in [
        (me, "x", 400, "invalid channel_id format"),
        (me, str(uuid.uuid4()), 404, "DM not found"),
        (me, gone, 404, "DM not found"),
        (me, stream, 400, "channel is not a DM"),
        (stranger, dm, 403, "not a member of this DM"),
    ]:
        found = await rig.post(f"/api/dms/{channel_id}/hide", key=key)
        assert (found.status, found.json) == (status, {"error": text})
    assert await rig.con.fetchval("SELECT count(*) FROM channel_members WHERE hidden_at IS NOT NULL") == 0


async def test_the_list(rig: Rig) -> None:
    """Last message first, whatever it was; without one, the creation counts."""
    me, other = new_key(), new_key()
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name) VALUES ($1, 'Ada')", bytes.fromhex(other.public_hex)
    )
    now = int(time.time())
    dms = [
        await rig.channel(me, "DM", channel_type="dm", visibility="private", others=(other.public_hex,))
        for _ in range(3)
    ]
    await rig.channel(me, "stream")
    await rig.message(dms[0], other, now + 500)
    await rig.message(dms[2], other, now - 500)
    assert await listed(rig, me) == ([dms[0], dms[1], dms[2]], None)
    found = (await rig.get("/api/dms?limit=1", key=me)).json
    (dm,) = found["dms"]
    assert set(dm) == {"channel_id", "participants", "last_message_at", "created_at"}
    assert dm["participants"] == [
        {"pubkey": me.public_hex, "display_name": None, "role": "member"},
        {"pubkey": other.public_hex, "display_name": "Ada", "role": "member"},
    ]
    assert dm["last_message_at"].endswith("+00:00")
    assert found["next_cursor"] == dms[0]


async def test_pages_neither_skip_nor_repeat_within_a_second(rig: Rig) -> None:
    me = new_key()
    dms = [await rig.channel(me, "DM", channel_type="dm", visibility="private") for _ in range(7)]
    for number, dm in enumerate(dms):
        await rig.message(dm, me, 1_700_000_000 + number // 5)
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page, cursor = await listed(rig, me, f"?limit=2{f'&cursor={cursor}' if cursor else ''}")
        assert len(page) <= 2
        seen += page
        if cursor is None:
            break
    assert sorted(seen) == sorted(dms)
    assert set(seen[:2]) == set(dms[5:])
    # Exactly at the end there is no cursor either.
    assert (await listed(rig, me, "?limit=7"))[1] is None
    assert await listed(rig, me, "?limit=0") == ([], None)


async def test_cursors(rig: Rig) -> None:
    me, stranger = new_key(), new_key()
    for _ in range(2):
        await rig.channel(me, "DM", channel_type="dm", visibility="private")
    foreign = await rig.channel(stranger, "DM", channel_type="dm", visibility="private")
    stream = await rig.channel(me)
    page, cursor = await listed(rig, me, "?limit=1")
    assert cursor == page[0]
    # Hidden in the meantime, it still says where to go on.
    assert (await rig.post(f"/api/dms/{cursor}/hide", key=me)).status == 204
    rest, _ = await listed(rig, me, f"?limit=1&cursor={cursor.replace('-', '').upper()}")
    assert len(rest) == 1
    assert rest[0] not in page
    assert (await rig.get("/api/dms?cursor=x", key=me)).json == {"error": "invalid cursor format"}
    for unknown in (foreign, stream, str(uuid.uuid4())):
        found = await rig.get(f"/api/dms?cursor={unknown}", key=me)
        assert (found.status, found.json) == (400, {"error": "invalid cursor"})


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=x", "limit: invalid digit found in string"),
        ("limit=-1", "limit: invalid digit found in string"),
        ("limit=", "limit: cannot parse integer from empty string"),
        ("limit=4294967296", "limit: number too large to fit in target type"),
        ("limit=" + "9" * 5000, "limit: number too large to fit in target type"),
        ("limit=1&limit=2", "duplicate field `limit`"),
    ],
)
async def test_a_bad_limit(rig: Rig, query: str, detail: str) -> None:
    found = await rig.get(f"/api/dms?{query}")
    assert (found.status, found.text) == (400, f"Failed to deserialize query string: {detail}")


async def test_the_list_is_capped_and_costs_three_statements(rig: Rig) -> None:
    me = new_key()
    await rig.con.execute(
        "WITH made AS (INSERT INTO channels (name, channel_type, visibility, created_by) "
        "SELECT 'DM', 'dm', 'private', $1 FROM generate_series(1, 230) RETURNING id) "
        "INSERT INTO channel_members (channel_id, pubkey) SELECT id, $1 FROM made",
        bytes.fromhex(me.public_hex),
    )
    for query, length in (("", 50), ("?limit=4294967295", 200), ("?limit=%2B3", 3), ("?limit=" + "0" * 5000 + "3", 3)):
        token = await rig.mint(me, ["messages:read"])
        rig.statements.clear()
        found = (await rig.get(f"/api/dms{query}", token=token)).json
        assert len(found["dms"]) == length
        assert found["next_cursor"] == found["dms"][-1]["channel_id"]
        assert len(rig.statements) == 3


async def test_a_restricted_token_stays_within_its_channels(rig: Rig) -> None:
    me, other, third = new_key(), new_key(), new_key()
    inside = (await opened(rig, me, other))["channel_id"]
    outside = (await opened(rig, me, third))["channel_id"]
    token = await rig.mint(me, ["messages:read", "messages:write"], [inside])
    denied = {"error": "channel_not_permitted", "message": "Token does not have access to this channel"}

    found = (await rig.get("/api/dms", token=token)).json
    assert [dm["channel_id"] for dm in found["dms"]] == [inside]
    assert (await rig.get(f"/api/dms?cursor={outside}", token=token)).status == 400
    assert (await rig.post("/api/dms", token=token, json={"pubkeys": [other.public_hex]})).status == 200
    channels = await rig.con.fetchval("SELECT count(*) FROM channels")
    for path, body in [
        ("/api/dms", {"pubkeys": [third.public_hex]}),  # exists, elsewhere
        ("/api/dms", {"pubkeys": [new_key().public_hex]}),  # would be new
        (f"/api/dms/{outside}/members", {"pubkeys": [other.public_hex]}),
        (f"/api/dms/{inside}/members", {"pubkeys": [third.public_hex]}),
        (f"/api/dms/{outside}/hide", None),
    ]:
        answer = await rig.post(path, token=token, json=body)
        assert (answer.status, answer.json) == (403, denied), path
    assert await rig.con.fetchval("SELECT count(*) FROM channels") == channels
    assert (await rig.post(f"/api/dms/{inside}/hide", token=token)).status == 204


@pytest.mark.parametrize("dms", [0, 1, 20, 200])
async def test_statements_do_not_grow_with_the_dms(rig: Rig, dms: int) -> None:
    me = new_key()
    await rig.dms(me, dms)
    token = await rig.mint(me, ["messages:read"])
    rig.statements.clear()
    found = (await rig.get("/api/dms?limit=200", token=token)).json
    assert len(found["dms"]) == dms
    assert all(len(dm["participants"]) == 3 for dm in found["dms"])
    assert len(rig.statements) == (3 if dms else 2), rig.statements


async def test_an_expired_message_makes_no_dm_active(rig: Rig) -> None:
    me, other = new_key(), new_key()
    dm = (await opened(rig, me, other))["channel_id"]
    now = int(time.time())
    over = await rig.message(dm, other, now + 2000)
    still = await rig.message(dm, other, now + 1000)
    await rig.con.execute("UPDATE events SET expires_at = $2 WHERE id = $1", bytes.fromhex(over.id), now - 1)
    await rig.con.execute("UPDATE events SET expires_at = $2 WHERE id = $1", bytes.fromhex(still.id), now + 5000)
    expected = rfc3339_seconds(now + 1000)
    assert (await rig.get("/api/dms", key=me)).json["dms"][0]["last_message_at"] == expected
    assert (await rig.get("/api/channels", key=me)).json[0]["last_message_at"] == expected
