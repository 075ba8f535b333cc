"""GET /api/channels/{id}: every key, who may read it, and that it is two statements."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from relay.nostr.keys import SecretKey
from tests.support.http import Rig, new_key, signed

NOT_A_MEMBER = {"error": "not a member of this channel"}
DENIED = {"error": "channel_not_permitted", "message": "Token does not have access to this channel"}
# (what follows the channel's path, what is said of a text that is no UUID)
ROUTES = [("", "invalid channel_id"), ("/members", "invalid channel_id"), ("/canvas", "invalid channel UUID")]

every_route = pytest.mark.parametrize("end", [end for end, _ in ROUTES])


async def test_a_bare_channel(rig: Rig) -> None:
    owner, other = new_key(), new_key()
    channel_id = await rig.channel(owner, "general", others=(other.public_hex,))
    found = await rig.get(f"/api/channels/{channel_id}", key=owner)
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    body = found.json
    assert all(body.pop(key).endswith("+00:00") for key in ("created_at", "updated_at"))
    assert body == {
        "id": channel_id,
        "name": "general",
        "channel_type": "stream",
        "visibility": "open",
        "description": None,
        "topic": None,
        "topic_set_by": None,
        "topic_set_at": None,
        "purpose": None,
        "purpose_set_by": None,
        "purpose_set_at": None,
        "created_by": owner.public_hex,
        "archived_at": None,
        "member_count": 2,
        "topic_required": False,
        "max_members": None,
        "nip29_group_id": None,
        "ttl_seconds": None,
        "ttl_deadline": None,
    }


async def test_a_full_channel(rig: Rig) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner, channel_type="forum", visibility="private")
    await rig.con.execute(
        "UPDATE channels SET description = 'd', topic = 't', topic_set_by = $1, topic_set_at = '2024-01-02Z', "
        "purpose = 'p', purpose_set_by = $2, purpose_set_at = '2024-01-03 01:02:03.25Z', archived_at = '2024-01-04Z', "
        "topic_required = true, max_members = 7, ttl_seconds = 60, ttl_deadline = '2024-01-05 00:00:00.000001Z'",
        bytes([1]) * 32,
        bytes([2]) * 32,
    )
    found = (await rig.get(f"/api/channels/{channel_id}", key=owner)).json
    assert {key: found[key] for key in found if found[key] is not None} == {
        "id": channel_id,
        "name": "general",
        "channel_type": "forum",
        "visibility": "private",
        "description": "d",
        "topic": "t",
        "topic_set_by": "01" * 32,
        "topic_set_at": "2024-01-02T00:00:00+00:00",
        "purpose": "p",
        "purpose_set_by": "02" * 32,
        "purpose_set_at": "2024-01-03T01:02:03.250+00:00",
        "created_by": owner.public_hex,
        "created_at": found["created_at"],
        "updated_at": found["updated_at"],
        "archived_at": "2024-01-04T00:00:00+00:00",
        "member_count": 1,
        "topic_required": True,
        "max_members": 7,
        "ttl_seconds": 60,
        "ttl_deadline": "2024-01-05T00:00:00.000001+00:00",
    }


async def test_what_an_edit_says_is_read_back(rig: Rig) -> None:
    """Through the events that make and change a channel, not through its table."""
    owner, channel_id = new_key(), str(uuid.uuid4())
    made = await rig.submit(owner, 9007, [["h", channel_id], ["name", "plans"], ["visibility", "private"]])
    assert made.json["accepted"], made.body
    edited = await rig.submit(owner, 9002, [["h", channel_id], ["topic", "launch"]])
    assert edited.json["accepted"], edited.body
    found = (await rig.get(f"/api/channels/{channel_id}", key=owner)).json
    assert (found["name"], found["visibility"], found["member_count"]) == ("plans", "private", 1)
    assert (found["topic"], found["topic_set_by"]) == ("launch", owner.public_hex)
    assert found["topic_set_at"] is not None


@every_route
@pytest.mark.parametrize("spelling", [str, str.upper, lambda text: text.replace("-", ""), "urn:uuid:{}".format])
async def test_spellings_of_an_id(rig: Rig, end: str, spelling: Any) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner)
    assert (await rig.get(f"/api/channels/{spelling(channel_id)}{end}", key=owner)).status == 200


@pytest.mark.parametrize(("end", "text"), ROUTES)
async def test_what_is_no_id(rig: Rig, end: str, text: str) -> None:
    # Who asks is looked at first.
    assert (await rig.get(f"/api/channels/x{end}")).status == 401
    for bad in ("x", "0" * 31, "%00"):
        found = await rig.get(f"/api/channels/{bad}{end}", key=new_key())
        assert (found.status, found.json) == (400, {"error": text})


@every_route
async def test_who_may_read(rig: Rig, end: str) -> None:
    owner, stranger = new_key(), new_key()
    public, private = await rig.channel(owner), await rig.channel(owner, visibility="private")

    async def status(key: SecretKey, channel_id: str) -> int:
        found = await rig.get(f"/api/channels/{channel_id}{end}", key=key)
        assert found.status == 200 or found.json == NOT_A_MEMBER
        return found.status

    assert [await status(owner, public), await status(owner, private)] == [200, 200]
    assert [await status(stranger, public), await status(stranger, private)] == [200, 403]
    assert await status(owner, str(uuid.uuid4())) == 403
    # Said to this relay or to another one, it holds for the next request.
    await rig.con.execute("UPDATE channel_members SET removed_at = now()")
    assert [await status(owner, public), await status(owner, private)] == [200, 403]
    await rig.con.execute("UPDATE channels SET deleted_at = now()")
    assert await status(owner, public) == 403


@every_route
async def test_what_a_token_may_read(rig: Rig, end: str) -> None:
    owner = new_key()
    inside, outside = await rig.channel(owner), await rig.channel(owner)
    token = await rig.mint(owner, ["channels:read"], [inside])
    assert (await rig.get(f"/api/channels/{inside}{end}", token=token)).status == 200
    for channel_id in (outside, str(uuid.uuid4())):
        found = await rig.get(f"/api/channels/{channel_id}{end}", token=token)
        assert (found.status, found.json) == (403, DENIED)
    found = await rig.get(f"/api/channels/{inside}{end}", token=await rig.mint(owner, ["messages:read"]))
    assert (found.status, found.json) == (
        403, {"error": "insufficient_scope", "message": "token missing required scope: channels:read"},
    )  # fmt: skip


@every_route
@pytest.mark.parametrize("members", [1, 20, 200])
async def test_two_statements(rig: Rig, end: str, members: int) -> None:
    owner = new_key()
    channel_id = await rig.channel(owner, others=tuple(new_key().public_hex for _ in range(members - 1)))
    canvas = signed(owner, 40100, [["h", channel_id]], "# Plans")
    assert (await rig.post("/api/events", key=owner, data=canvas.json)).json["accepted"]
    token = await rig.mint(owner, ["channels:read"])
    rig.statements.clear()
    assert (await rig.get(f"/api/channels/{channel_id}{end}", token=token)).status == 200
    assert len(rig.statements) == 2, rig.statements
