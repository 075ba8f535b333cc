"""GET /api/channels/{id}/members: order, names, and pages beyond a thousand."""

from __future__ import annotations

import pytest

from tests.support.http import Rig, new_key

MEMBERS = """
INSERT INTO channel_members (channel_id, pubkey, joined_at)
SELECT $1, sha256(n::text::bytea), '2024-01-01Z'::timestamptz + (n / $3) * interval '1 microsecond'
FROM generate_series(1, $2::int) n"""


async def test_in_the_order_of_joining(rig: Rig) -> None:
    owner, named, gone, first = (new_key() for _ in range(4))
    channel_id = await rig.channel(owner, others=(named.public_hex, gone.public_hex))
    await rig.con.execute("UPDATE channel_members SET joined_at = '2024-01-01 00:00:00.5Z', role = 'admin'")
    await rig.con.execute(
        "INSERT INTO channel_members (channel_id, pubkey, role, joined_at) VALUES ($1, $2, 'bot', '2023-01-01Z')",
        channel_id, bytes.fromhex(first.public_hex),
    )  # fmt: skip
    await rig.con.execute(
        "UPDATE channel_members SET removed_at = now() WHERE pubkey = $1", bytes.fromhex(gone.public_hex)
    )
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name) VALUES ($1, 'Ada')", bytes.fromhex(named.public_hex)
    )
    found = await rig.get(f"/api/channels/{channel_id}/members", key=owner)
    then = {"role": "admin", "joined_at": "2024-01-01T00:00:00.500+00:00"}
    together = [
        {"pubkey": owner.public_hex, "display_name": None} | then,
        {"pubkey": named.public_hex, "display_name": "Ada"} | then,
    ]
    assert found.json == {
        "members": [
            {"pubkey": first.public_hex, "role": "bot", "joined_at": "2023-01-01T00:00:00+00:00", "display_name": None},
            *sorted(together, key=lambda member: str(member["pubkey"])),
        ],
        "next_cursor": None,
    }


async def test_a_channel_that_everybody_left(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    await rig.con.execute("UPDATE channel_members SET removed_at = now()")
    found = await rig.get(f"/api/channels/{channel_id}/members", key=owner)
    assert (found.status, found.json) == (200, {"members": [], "next_cursor": None})


@pytest.mark.parametrize(
    ("members", "sharing", "pages"), [(1000, 1, 1), (1001, 1, 2), (2500, 1500, 3), (2000, 2500, 2)]
)
async def test_pages_hold_everybody_once(rig: Rig, members: int, sharing: int, pages: int) -> None:
    """`sharing` of them joined in the same microsecond, so that a page ends among them."""
    owner = new_key()
    channel_id = await rig.channel(owner)
    await rig.con.execute("DELETE FROM channel_members")
    await rig.con.execute(MEMBERS, channel_id, members, sharing)
    path = f"/api/channels/{channel_id}/members"
    seen: list[str] = []
    cursor = None
    for page in range(1, pages + 1):
        found = (await rig.get(path if cursor is None else f"{path}?cursor={cursor}", key=owner)).json
        seen += [member["pubkey"] for member in found["members"]]
        cursor = found["next_cursor"]
        assert (cursor is None) is (page == pages)
    rows = await rig.con.fetch(
        "SELECT encode(pubkey, 'hex') FROM channel_members ORDER BY joined_at, channel_members.pubkey"
    )
    assert seen == [row[0] for row in rows]


async def test_who_leaves_between_two_pages_hides_nobody(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    await rig.con.execute("DELETE FROM channel_members")
    await rig.con.execute(MEMBERS, channel_id, 1500, 1)
    path = f"/api/channels/{channel_id}/members"
    first = (await rig.get(path, key=owner)).json
    left = [member["pubkey"] for member in first["members"][-10:]]
    await rig.con.execute(
        "UPDATE channel_members SET removed_at = now() WHERE pubkey = ANY($1)", [bytes.fromhex(key) for key in left]
    )
    rest = (await rig.get(f"{path}?cursor={first['next_cursor']}", key=owner)).json
    assert (len(rest["members"]), rest["next_cursor"]) == (500, None)


@pytest.mark.parametrize(
    "cursor", ["", "x", "0" * 79, "0" * 81, "g" * 80, "-" + "0" * 79, "0x" + "0" * 78, "f" * 80, "%2B" + "0" * 79]
)
async def test_what_is_no_cursor(rig: Rig, cursor: str) -> None:
    owner = new_key()
    path = f"/api/channels/{await rig.channel(owner)}/members?cursor={cursor}"
    assert (await rig.get(path)).status == 401
    found = await rig.get(path, key=owner)
    assert (found.status, found.json) == (400, {"error": "invalid cursor"})


async def test_two_cursors(rig: Rig) -> None:
    found = await rig.get("/api/channels/x/members?cursor=1&cursor=2")
    assert (found.status, found.text) == (400, "Failed to deserialize query string: duplicate field `cursor`")
