"""GET /api/channels: every key of a row, the order, what is left out, and what it costs."""

from __future__ import annotations

import time

import pytest

from tests.support.http import Rig, new_key

KEYS = {
    "id", "name", "channel_type", "visibility", "description", "topic", "purpose", "created_by", "created_at",
    "updated_at", "archived_at", "member_count", "last_message_at", "participants", "participant_pubkeys", "is_member",
    "ttl_seconds", "ttl_deadline",
}  # fmt: skip


async def test_a_row_has_every_key(rig: Rig) -> None:
    owner, other = new_key(), new_key()
    channel_id = await rig.channel(owner, "general", others=(other.public_hex,))
    await rig.message(channel_id, owner, 1_700_000_000)
    await rig.message(channel_id, other, 1_600_000_000)
    found = await rig.get("/api/channels", key=owner)
    assert found.status == 200
    assert found.headers["content-type"] == "application/json"
    (row,) = found.json
    assert set(row) == KEYS
    assert row["created_at"].endswith("+00:00")
    assert {key: row[key] for key in KEYS - {"created_at", "updated_at"}} == {
        "id": channel_id,
        "name": "general",
        "channel_type": "stream",
        "visibility": "open",
        "description": "",
        "topic": None,
        "purpose": None,
        "created_by": owner.public_hex,
        "archived_at": None,
        "member_count": 2,
        "last_message_at": "2023-11-14T22:13:20+00:00",
        "participants": [],
        "participant_pubkeys": [],
        "is_member": True,
        "ttl_seconds": None,
        "ttl_deadline": None,
    }


async def test_nothing_but_nulls_and_zeros_where_there_is_nothing(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    channel_id = await rig.channel(owner)
    await rig.con.execute("UPDATE channel_members SET removed_at = now()")
    await rig.con.execute(
        "UPDATE channels SET description = 'about', topic = 't', purpose = 'p', archived_at = now(), ttl_seconds = 60, "
        "ttl_deadline = '2030-01-02 03:04:05.5Z' WHERE id = $1",
        channel_id,
    )
    (row,) = (await rig.get("/api/channels", key=stranger)).json
    assert (row["member_count"], row["last_message_at"], row["is_member"]) == (0, None, False)
    assert (row["description"], row["topic"], row["purpose"]) == ("about", "t", "p")
    assert row["archived_at"] is not None
    assert (row["ttl_seconds"], row["ttl_deadline"]) == (60, "2030-01-02T03:04:05.500+00:00")


async def test_deleted_messages_and_channels_do_not_count(rig: Rig) -> None:
    owner = new_key()
    kept, gone = await rig.channel(owner, "kept"), await rig.channel(owner, "gone")
    await rig.message(kept, owner, 1000)
    last = await rig.message(kept, owner, 2000)
    await rig.con.execute("UPDATE events SET deleted_at = now() WHERE id = $1", bytes.fromhex(last.id))
    await rig.con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", gone)
    (row,) = (await rig.get("/api/channels", key=owner)).json
    assert (row["id"], row["last_message_at"]) == (kept, "1970-01-01T00:16:40+00:00")


async def test_a_message_from_no_calendar_year_is_clamped(rig: Rig) -> None:
    owner = new_key()
    await rig.message(await rig.channel(owner), owner, 2**62)
    (row,) = (await rig.get("/api/channels", key=owner)).json
    assert row["last_message_at"] == "9999-12-31T23:59:59+00:00"


async def test_order_is_by_type_then_name(rig: Rig) -> None:
    owner = new_key()
    for channel_type, name in [("workflow", "a"), ("forum", "a"), ("stream", "b"), ("dm", "a"), ("stream", "a")]:
        await rig.channel(owner, name, channel_type=channel_type, visibility="private")
    rows = (await rig.get("/api/channels", key=owner)).json
    assert [(row["channel_type"], row["name"]) for row in rows] == [
        ("stream", "a"), ("stream", "b"), ("forum", "a"), ("dm", "a"), ("workflow", "a"),
    ]  # fmt: skip


async def test_who_sees_what(rig: Rig) -> None:
    owner, stranger = new_key(), new_key()
    public = await rig.channel(owner, "public")
    private = await rig.channel(owner, "private", visibility="private")

    async def ids(path: str, **options: object) -> list[str]:
        return [row["id"] for row in (await rig.get(path, **options)).json]

    assert await ids("/api/channels", key=stranger) == [public]
    assert await ids("/api/channels", key=owner) == [private, public]
    assert await ids("/api/channels?visibility=private", key=owner) == [private]
    assert await ids("/api/channels?visibility=open", key=owner) == [public]
    assert await ids("/api/channels?visibility=secret", key=owner) == []
    assert await ids("/api/channels?member=true", key=stranger) == []
    assert await ids("/api/channels?member=false&unknown=1&unknown=2", key=stranger) == [public]
    restricted = await rig.mint(owner, ["channels:read"], [private])
    assert await ids("/api/channels", token=restricted) == [private]
    nothing = await rig.mint(owner, ["channels:read"], [])
    assert await ids("/api/channels", token=nothing) == []


async def test_participants_of_a_dm(rig: Rig) -> None:
    """Everybody in it, by the time of joining and then by key; a key stands for who has no name."""
    keys = sorted([new_key() for _ in range(4)], key=lambda key: key.public_hex)
    me, named, unnamed, first = keys
    dm = await rig.channel(
        me, "DM", channel_type="dm", visibility="private",
        others=(first.public_hex, unnamed.public_hex, named.public_hex),
    )  # fmt: skip
    await rig.con.execute("UPDATE channel_members SET joined_at = '2024-01-01Z'")
    await rig.con.execute(
        "UPDATE channel_members SET joined_at = '2023-01-01Z' WHERE pubkey = $1", bytes.fromhex(first.public_hex)
    )
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name) VALUES ($1, 'Ada'), ($2, '')",
        bytes.fromhex(named.public_hex), bytes.fromhex(first.public_hex),
    )  # fmt: skip
    (row,) = (await rig.get("/api/channels", key=me)).json
    assert row["id"] == dm
    assert row["participant_pubkeys"] == [key.public_hex for key in (first, me, named, unnamed)]
    assert row["participants"] == ["", me.public_hex[:8], "Ada", unnamed.public_hex[:8]]
    assert row["member_count"] == 4


async def test_a_hidden_dm_is_left_out_and_a_hidden_stream_is_not(rig: Rig) -> None:
    me, other = new_key(), new_key()
    await rig.channel(me, "DM", channel_type="dm", visibility="private", others=(other.public_hex,))
    stream = await rig.channel(me, "stream", visibility="private")
    await rig.con.execute(
        "UPDATE channel_members SET hidden_at = now() WHERE pubkey = $1", bytes.fromhex(me.public_hex)
    )
    assert [row["id"] for row in (await rig.get("/api/channels", key=me)).json] == [stream]
    assert len((await rig.get("/api/channels", key=other)).json) == 1


@pytest.mark.parametrize("dms", [0, 1, 20, 200])
@pytest.mark.parametrize("with_token", [False, True])
async def test_statements_do_not_grow_with_the_dms(rig: Rig, dms: int, with_token: bool) -> None:
    me = new_key()
    token = await rig.mint(me, ["channels:read"]) if with_token else None
    await rig.channel(me)
    await rig.dms(me, dms)
    rig.statements.clear()
    found = await rig.get("/api/channels", key=None if with_token else me, token=token)
    assert len(found.json) == dms + 1
    assert all(len(row["participants"]) == 3 for row in found.json[1:])
    # Signing in, the channels, and the participants if there are DMs.
    assert len(rig.statements) == (3 if dms else 2), rig.statements


async def test_at_most_a_thousand(rig: Rig) -> None:
    me = new_key()
    await rig.con.execute(
        "INSERT INTO channels (name, created_by) SELECT lpad(n::text, 4, '0'), $1 FROM generate_series(1, 1003) n",
        bytes.fromhex(me.public_hex),
    )
    started = time.perf_counter()
    rows = (await rig.get("/api/channels", key=me)).json
    assert [row["name"] for row in rows] == [f"{n:04}" for n in range(1, 1001)]
    assert time.perf_counter() - started < 5


async def test_a_visibility_that_no_channel_can_have_matches_nothing(rig: Rig) -> None:
    me = new_key()
    await rig.channel(me)
    for text in ("secret", "%00", "open%00", "%ff", "%C2%B2"):
        found = await rig.get(f"/api/channels?visibility={text}", key=me)
        assert (found.status, found.json) == (200, []), text


@pytest.mark.parametrize("query", ["member=yes", "member=", "member=True", "member=true&member=true"])
async def test_a_bad_query_is_refused_before_anybody_signs_in(rig: Rig, query: str) -> None:
    found = await rig.get(f"/api/channels?{query}")
    assert found.status == 400
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    if query.count("member") == 1:
        detail = "member: provided string was not `true` or `false`"
    else:
        detail = "duplicate field `member`"
    assert found.text == f"Failed to deserialize query string: {detail}"


async def test_needs_a_caller_and_the_right(rig: Rig) -> None:
    assert (await rig.get("/api/channels")).status == 401
    token = await rig.mint(new_key(), ["messages:read"])
    found = await rig.get("/api/channels", token=token)
    assert (found.status, found.json) == (
        403, {"error": "insufficient_scope", "message": "token missing required scope: channels:read"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2024-01-02 03:04:05Z", "2024-01-02T03:04:05+00:00"),
        ("2024-01-02 03:04:05.6Z", "2024-01-02T03:04:05.600+00:00"),
        ("2024-01-02 03:04:05.000007Z", "2024-01-02T03:04:05.000007+00:00"),
        ("2024-01-02 03:04:05.100010Z", "2024-01-02T03:04:05.100010+00:00"),
        ("0001-01-01 00:00:00Z", "0001-01-01T00:00:00+00:00"),
    ],
)
async def test_times_have_no_more_digits_than_they_need(rig: Rig, moment: str, text: str) -> None:
    me = new_key()
    await rig.channel(me)
    await rig.con.execute(f"UPDATE channels SET created_at = '{moment}', archived_at = '{moment}'")
    (row,) = (await rig.get("/api/channels", key=me)).json
    assert (row["created_at"], row["archived_at"]) == (text, text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00+00:00"),
        (-1, "1969-12-31T23:59:59+00:00"),
        (2**32 - 1, "2106-02-07T06:28:15+00:00"),
        (2**32, "2106-02-07T06:28:16+00:00"),
        (-(2**62), "0001-01-01T00:00:00+00:00"),
    ],
)
async def test_the_time_of_the_last_message(rig: Rig, seconds: int, text: str) -> None:
    me = new_key()
    await rig.message(await rig.channel(me), me, seconds)
    (row,) = (await rig.get("/api/channels", key=me)).json
    assert row["last_message_at"] == text
