"""The contract on the wire: whole frames of a running relay, compared to the byte.

Why a text is due is tried where it is decided, in `tests/ingest` and `tests/query`. Here stands what a client reads:
each answer with its prefix, its spaces and the order of its keys, as the clients of the original compare it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
import trio

from relay.nostr.event import Event
from relay.store import users
from tests.support.core import ALICE, BOB, CAROL, Person
from tests.support.relay import SECONDS, Client, RelayUnderTest, fields, now
from tests.websocket.rights import limit

OPEN, PRIVATE, ARCHIVED, NOWHERE = (f"0000000{digit}-0000-4000-8000-00000000c0de" for digit in "1234")
DAVE, AGENT = Person.number(4), Person.number(5)
REPO, COMMIT = ["repo", "https://git.example/x"], ["commit", "abcdef0"]


def h(channel: str) -> list[str]:
    return ["h", channel]


def p(person: Person, *more: str) -> list[str]:
    return ["p", person.pubkey, *more]


async def raw(client: Client) -> str:
    """The next frame as it came."""
    assert not client.frames
    with trio.fail_after(SECONDS):
        text = await client.websocket.get_message()
    assert isinstance(text, str)
    return text


async def answer(client: Client, event: Event | dict[str, Any]) -> str:
    """What follows the id in the OK, as it came."""
    sent = event if isinstance(event, dict) else fields(event)
    await client.send("EVENT", sent)
    beginning = f'["OK","{sent["id"]}",'
    text = await raw(client)
    assert text.startswith(beginning), text
    return text.removeprefix(beginning)


def refused(text: str) -> str:
    return f"false,{orjson.dumps(text).decode()}]"


@dataclass
class Team:
    """Open, private and archived channel of Alice; Bob and Carol are members of the first, Bob of no other."""

    relay: RelayUnderTest
    alice: Client
    bob: Client
    stock: dict[str, Event]

    def e(self, name: str, *more: str) -> list[str]:
        return ["e", self.stock[name].id, *more]


@pytest.fixture
async def team(relay: RelayUnderTest) -> Team:
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    for channel, visibility in ((OPEN, "open"), (PRIVATE, "private"), (ARCHIVED, "open")):
        tags = [h(channel), ["name", "n"], ["visibility", visibility]]
        assert await answer(alice, ALICE.sign(9007, tags=tags)) == 'true,""]'
    for person in (BOB, CAROL):
        assert await answer(alice, ALICE.sign(9000, tags=[h(OPEN), p(person)])) == 'true,""]'
    stock = {
        "mine": BOB.sign(9, "mine", [h(OPEN)]),
        "note": BOB.sign(1, "note"),
        "gone": BOB.sign(9, "gone", [h(OPEN)]),
        "hers": ALICE.sign(9, "hers", [h(OPEN)]),
        "elsewhere": ALICE.sign(9, "elsewhere", [h(PRIVATE)]),
        "post": ALICE.sign(45001, "post", [h(OPEN)]),
    }
    for event in stock.values():
        assert await answer(alice if event.pubkey == ALICE.pubkey else bob, event) == 'true,""]'
    assert await answer(bob, BOB.sign(5, tags=[["e", stock["gone"].id]])) == 'true,""]'
    assert await answer(bob, BOB.sign(7, "+", [["e", stock["hers"].id]])) == 'true,""]'
    assert await answer(alice, ALICE.sign(9002, tags=[h(ARCHIVED), ["archived", "true"]])) == 'true,""]'
    return Team(relay, alice, bob, stock)


# -- OK ----------------------------------------------------------------------------------------------------------------


def events_of_bob(team: Team) -> list[tuple[Event | dict[str, Any], str]]:
    """What Bob sends, and what he is told."""
    here, e, edit, reply = h(OPEN), team.e, 40003, "reply"
    honest = fields(BOB.sign(1, "x"))
    forged = honest | {"content": "y"}
    computed = BOB.sign(1, "y", at=honest["created_at"]).id
    signed: list[tuple[int, str, list[list[str]], str]] = [
        (22242, "", [], "invalid: AUTH events cannot be submitted via EVENT"),
        (44100, "", [], "invalid: membership notifications are relay-signed only"),
        (44101, "", [], "invalid: membership notifications are relay-signed only"),
        (9009, "", [here], "restricted: unknown event kind"),
        (40001, "", [here], "restricted: unknown event kind"),
        (9, "", [], "invalid: channel-scoped events must include an h tag"),
        (9, "", [h(PRIVATE)], "restricted: not a channel member"),
        (9, "", [h(NOWHERE)], "restricted: not a channel member"),
        (20002, "", [h(PRIVATE)], "restricted: not a channel member"),
        (9, "", [h(ARCHIVED)], "invalid: channel is archived"),
        (20002, "", [h(ARCHIVED)], "invalid: channel is archived"),
        # Reactions, edits and votes.
        (7, "+", [], "invalid: reaction must reference a target event via e tag"),
        (7, "+", [["e", "x"]], "invalid: malformed reaction target id"),
        (7, "+", [e("gone")], "invalid: reaction target event not found"),
        (7, "é" * 65, [e("hers")], "invalid: reaction emoji exceeds 64 characters (got 65)"),
        (7, "", [e("hers")], "duplicate: reaction already exists"),
        (edit, "", [here], "invalid: missing e tag for edit target"),
        (edit, "", [here, e("gone")], "invalid: edit target event not found"),
        (edit, "", [here, e("elsewhere")], "invalid: target event belongs to a different channel"),
        (edit, "", [here, e("note")], "invalid: target event has no channel"),
        (edit, "", [here, e("hers")], "invalid: must be event author to edit"),
        (45002, "+", [here], "invalid: missing e tag for vote target"),
        (45002, "+", [here, e("gone")], "invalid: vote target event not found"),
        (45002, "+", [here, e("mine")], "invalid: vote target must be a forum post or comment"),
        # Answers.
        (9, "", [here, e("gone", "", reply)], "invalid: reply parent not found"),
        (9, "", [here, e("elsewhere", "", reply)], "invalid: parent event belongs to a different channel"),
        (9, "", [here, e("note", "", reply)], "invalid: parent event has no channel association"),
        (
            9,
            "",
            [here, e("hers", "", reply), e("mine", "", "root")],
            "invalid: root tag does not match thread ancestry",
        ),
        # Diffs.
        (40008, "é" * 30_721, [here], "invalid: diff content exceeds 60KB limit (got 61442 bytes)"),
        (40008, "", [here, ["repo", "git@x"]], "invalid: repo URL must be http or https"),
        (40008, "", [here, ["commit", "abc"]], "invalid: commit SHA must be at least 7 hex characters"),
        (40008, "", [here, ["parent-commit", "abc"]], "invalid: parent-commit SHA must be at least 7 hex characters"),
        (40008, "", [here, ["branch", "a"]], "invalid: branch tag requires both source and target"),
        (40008, "", [here, ["pr", "0"]], "invalid: pr number must be a positive integer"),
        (40008, "", [here, COMMIT], "invalid: diff event requires a repo tag"),
        (40008, "", [here, REPO], "invalid: diff event requires a commit tag"),
        # Deletions.
        (5, "", [], "invalid: missing e tag for target event"),
        (5, "", [["e", NOWHERE.replace("-", "") * 2]], "invalid: target event not found"),
        (5, "", [e("hers")], "invalid: must be event author"),
        (5, "", [["a", "x"]], "invalid: malformed deletion target id"),
        (
            5,
            "",
            [e("mine"), e("note")],
            "invalid: deletion events must reference exactly one target via e or a tag (got e=2, a=0)",
        ),
        (9005, "", [here], "invalid: missing e tag for target event"),
        (9005, "", [here, e("gone")], "invalid: target event not found"),
        (9005, "", [here, e("elsewhere")], "invalid: target event belongs to a different channel"),
        (9005, "", [here, e("note")], "invalid: target event has no channel"),
        (9005, "", [here, e("hers")], "invalid: must be event author or channel owner/admin"),
        # Groups.
        (9007, "", [h(NOWHERE)], "invalid: channel name is required"),
        (9007, "", [["name", "n"], ["visibility", "x"]], "invalid visibility: x"),
        (9007, "", [["name", "n"], ["channel_type", "x"]], "invalid channel_type: x"),
        (9007, "", [here, ["name", "n"]], "duplicate: channel already exists"),
        (9021, "", [h(PRIVATE)], "restricted: channel is private"),
        (9021, "", [h(NOWHERE)], "invalid: channel not found"),
        (9021, "", [], "invalid: missing or invalid h tag"),
        (9021, "", [h(ARCHIVED)], "invalid: channel is archived"),
        (9000, "", [here, p(DAVE), ["role", "x"]], "invalid: invalid role: x"),
        (9000, "", [here], "invalid: missing p tag"),
        (9000, "", [here, p(DAVE), ["role", "admin"]], "invalid: only owners/admins may grant elevated roles"),
        (9001, "", [here], "invalid: missing p tag"),
        (9001, "", [here, p(CAROL)], "invalid: actor not authorized"),
        (
            9002,
            "",
            [here],
            "invalid: kind:9002 must include at least one metadata tag (name, about, archived, topic, purpose)",
        ),
        (9002, "", [here, ["archived"]], "invalid: archived tag must have a value"),
        (9002, "", [here, ["visibility"]], "invalid: visibility tag must have a value"),
        (9002, "", [here, ["archived", "x"]], 'invalid: invalid archived value: x (must be "true" or "false")'),
        (9002, "", [here, ["visibility", "x"]], 'invalid: invalid visibility value: x (must be "open" or "private")'),
        (
            9002,
            "",
            [here, ["ttl", "x"]],
            "invalid: invalid ttl value: x (must be a positive integer of seconds, or empty to clear)",
        ),
        (9002, "", [here, ["name", "x"]], "invalid: actor not authorized for name/about/archived changes"),
        (9008, "", [here], "invalid: only owner can delete group"),
        # Contents.
        (0, "{", [], "invalid: kind:0 content must be valid JSON"),
        (30023, "", [["d", "é" * 513]], "invalid: d tag too long (1026 bytes, max 1024)"),
        (1, "", [["imeta"]], "invalid: imeta tag must include url, m, x, and size"),
    ]
    drift = "invalid: event timestamp too far from server time"
    return [
        (forged, f"invalid: invalid event id: computed {computed}, got {honest['id']}"),
        (honest | {"sig": fields(BOB.sign(1, "z"))["sig"]}, "invalid: invalid schnorr signature"),
        (ALICE.sign(1, "x"), "invalid: event pubkey does not match authenticated identity"),
        (BOB.sign(1, "x", at=now() - 1000), drift),
        (BOB.sign(1, "x", at=now() + 1000), drift),
        *((BOB.sign(kind, content, tags), text) for kind, content, tags, text in signed),
    ]


async def test_refused_events(team: Team) -> None:
    told = [(await answer(team.bob, event), text) for event, text in events_of_bob(team)]
    assert [seen for seen, _ in told] == [refused(text) for _, text in told]


async def test_who_may_not_leave_or_be_removed(team: Team) -> None:
    for sender, event, text in (
        (team.alice, ALICE.sign(9022, tags=[h(OPEN)]), "invalid: cannot remove the last owner"),
        (team.alice, ALICE.sign(9001, tags=[h(OPEN), p(ALICE)]), "invalid: cannot remove the last owner"),
        (team.bob, BOB.sign(9022, tags=[h(PRIVATE)]), "restricted: not a channel member"),
    ):
        assert await answer(sender, event) == refused(text)
    dave = await team.relay.connect(DAVE)
    for event, text in (
        (DAVE.sign(9022, tags=[h(OPEN)]), "invalid: actor is not an active member"),
        (DAVE.sign(9001, tags=[h(OPEN), p(DAVE)]), "invalid: actor is not an active member"),
        (DAVE.sign(9002, tags=[h(OPEN), ["topic", "x"]]), "invalid: not a member"),
    ):
        assert await answer(dave, event) == refused(text)


async def test_agents_choose_who_adds_them(team: Team) -> None:
    """The dash is an em dash."""
    await users.ensure(team.relay.core.pool, [CAROL.pubkey])
    for policy, owner, text in (
        ("owner_only", None, "policy:owner_only — agent has no owner set"),
        ("owner_only", CAROL, "policy:owner_only — only the agent owner can add this agent"),
        ("nobody", None, "policy:nobody — this agent has disabled external channel additions"),
    ):
        await team.relay.core.pool.execute(
            "INSERT INTO users (pubkey, channel_add_policy, agent_owner_pubkey)"
            " VALUES ($1, $2::text::channel_add_policy, $3) ON CONFLICT (pubkey) DO UPDATE"
            " SET channel_add_policy = excluded.channel_add_policy, agent_owner_pubkey = excluded.agent_owner_pubkey",
            bytes.fromhex(AGENT.pubkey),
            policy,
            None if owner is None else bytes.fromhex(owner.pubkey),
        )
        event = BOB.sign(9000, tags=[h(OPEN), p(AGENT), ["t", text[:20]]])
        assert await answer(team.bob, event) == refused(f"invalid: {text}")


async def test_rights_and_channels_of_a_token(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(team.relay, BOB, monkeypatch, scopes=frozenset({"messages:read"}))
    for kind, scope in ((1, "messages:write"), (0, "users:write"), (9007, "channels:write"), (9008, "admin:channels")):
        text = f"restricted: insufficient scope (need {scope})"
        assert await answer(team.bob, BOB.sign(kind, "{}", [h(OPEN)])) == refused(text)
    text = "restricted: insufficient scope for ephemeral events"
    assert await answer(team.bob, BOB.sign(20002, "", [h(OPEN)])) == refused(text)
    limit(team.relay, BOB, monkeypatch, channel_ids=frozenset({PRIVATE}))
    text = "restricted: token does not have access to this channel"
    for kind in (9, 20002):
        assert await answer(team.bob, BOB.sign(kind, "", [h(OPEN)])) == refused(text)
    text = "restricted: channel-scoped tokens cannot publish global events"
    for kind in (1, 20002):
        assert await answer(team.bob, BOB.sign(kind, "")) == refused(text)


async def test_accepted_events(team: Team) -> None:
    old, new = (BOB.sign(0, "{}", at=now() - offset) for offset in (5, 4))
    for event, told in ((new, ""), (new, "duplicate:"), (old, "duplicate:"), (BOB.sign(20001, "away"), "")):
        assert await answer(team.bob, event) == f'true,"{told}"]'


# -- the other frames --------------------------------------------------------------------------------------------------


async def test_every_frame_to_the_byte(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    note = ALICE.sign(1, 'a "note" é\n', [["t", "x"]])
    said = note.json.decode()
    assert said.startswith(f'{{"id":"{note.id}","pubkey":"{note.pubkey}","created_at":{note.created_at},"kind":1,')
    name = 'q"\\é'
    quoted = '"q\\"\\\\é"'
    for message, frames in (
        (["EVENT", fields(note)], [f'["OK","{note.id}",true,""]']),
        (["REQ", name, {"ids": [note.id]}], [f'["EVENT",{quoted},{said}]', f'["EOSE",{quoted}]']),
        (["COUNT", name, {"kinds": [1]}], [f'["COUNT",{quoted},{{"count":1}}]']),
        (["CLOSE", name], [f'["CLOSED",{quoted},""]']),
        (["CLOSE", ""], ['["CLOSED","",""]']),
        (["NO"], ['["NOTICE","invalid message: Invalid message format: unknown message type: NO"]']),
    ):
        await client.send(*message)
        assert [await raw(client) for _ in frames] == frames


# -- what the relay says itself ----------------------------------------------------------------------------------------

SAID = {
    "members": [
        (ALICE, 9000, [p(CAROL)], f'{{"type":"member_joined","actor":"{ALICE.pubkey}","target":"{CAROL.pubkey}"}}'),
        (ALICE, 9001, [p(CAROL)], f'{{"type":"member_removed","actor":"{ALICE.pubkey}","target":"{CAROL.pubkey}"}}'),
        (BOB, 9021, [], f'{{"type":"member_joined","actor":"{BOB.pubkey}","target":"{BOB.pubkey}"}}'),
        (BOB, 9022, [], f'{{"type":"member_left","actor":"{BOB.pubkey}"}}'),
        (DAVE, 9021, [], f'{{"type":"member_joined","actor":"{DAVE.pubkey}","target":"{DAVE.pubkey}"}}'),
        (DAVE, 9001, [p(DAVE)], f'{{"type":"member_left","actor":"{DAVE.pubkey}","target":"{DAVE.pubkey}"}}'),
    ],
    "metadata": [
        (ALICE, 9002, [["topic", "é"]], f'{{"type":"topic_changed","actor":"{ALICE.pubkey}","topic":"é"}}'),
        (ALICE, 9002, [["purpose", "p"]], f'{{"type":"purpose_changed","actor":"{ALICE.pubkey}","purpose":"p"}}'),
        (
            ALICE,
            9002,
            [["visibility", "private"]],
            f'{{"type":"visibility_changed","actor":"{ALICE.pubkey}","visibility":"private"}}',
        ),
        (ALICE, 9002, [["ttl", "60"]], f'{{"type":"ttl_changed","actor":"{ALICE.pubkey}","ttl_seconds":60}}'),
        (ALICE, 9002, [["ttl", ""]], f'{{"type":"ttl_changed","actor":"{ALICE.pubkey}","ttl_seconds":null}}'),
        (ALICE, 9002, [["archived", "true"]], f'{{"type":"channel_archived","actor":"{ALICE.pubkey}"}}'),
        (ALICE, 9002, [["archived", "false"]], f'{{"type":"channel_unarchived","actor":"{ALICE.pubkey}"}}'),
        (ALICE, 9008, [], f'{{"type":"channel_deleted","actor":"{ALICE.pubkey}"}}'),
    ],
}


@pytest.mark.parametrize("chapter", SAID)
async def test_system_messages_to_the_byte(relay: RelayUnderTest, chapter: str) -> None:
    """Kind 40099 as the members read it live: one tag, compact JSON, its keys in this order."""
    clients = {person.pubkey: await relay.connect(person) for person in (ALICE, BOB, DAVE)}
    reader = await relay.connect(ALICE)
    create = ALICE.sign(9007, tags=[h(OPEN), ["name", "n"]])
    assert await answer(clients[ALICE.pubkey], create) == 'true,""]'
    (created,) = await reader.request("s", {"kinds": [40099], "#h": [OPEN]})
    assert (created["tags"], created["pubkey"]) == ([h(OPEN)], relay.core.key.public_hex)
    assert created["content"] == f'{{"type":"channel_created","actor":"{ALICE.pubkey}"}}'
    for person, kind, tags, content in SAID[chapter]:
        assert await answer(clients[person.pubkey], person.sign(kind, tags=[h(OPEN), *tags])) == 'true,""]'
        said = (await reader.expect("EVENT", "s"))[2]
        assert (said["tags"], said["content"]) == ([h(OPEN)], content)


async def test_other_system_messages_to_the_byte(team: Team) -> None:
    reader, core = await team.relay.connect(ALICE), team.relay.core
    await reader.request("s", {"kinds": [40099], "#h": [OPEN], "limit": 0})
    await reader.request("dms", {"kinds": [44100], "#p": [ALICE.pubkey], "limit": 0})
    mine = team.stock["mine"].id
    assert await answer(team.alice, ALICE.sign(9005, tags=[h(OPEN), ["e", mine]])) == 'true,""]'
    said = (await reader.expect("EVENT", "s"))[2]["content"]
    assert said == f'{{"type":"message_deleted","actor":"{ALICE.pubkey}","target_event_id":"{mine}"}}'

    await core.ingest.open_dm(ALICE.caller, [CAROL.pubkey, BOB.pubkey])
    notice = (await reader.expect("EVENT", "dms"))[2]
    dm = next(tag[1] for tag in notice["tags"] if tag[0] == "h")
    (told,) = await reader.request("dm", {"kinds": [40099], "#h": [dm]})
    others = '","'.join(sorted((BOB.pubkey, CAROL.pubkey)))
    assert told["content"] == (
        f'{{"type":"dm_created","actor":"{ALICE.pubkey}","participants":["{ALICE.pubkey}","{others}"]}}'
    )

    over = "UPDATE channels SET ttl_seconds = 1, ttl_deadline = now() - '1s'::interval WHERE id = $1"
    await core.pool.execute(over, OPEN)
    await core.ingest.reaper().look()
    assert (await reader.expect("EVENT", "s"))[2]["content"] == '{"type":"channel_auto_archived"}'


async def test_membership_notices_to_the_byte(team: Team) -> None:
    carol = await team.relay.connect(CAROL)
    assert await answer(team.alice, ALICE.sign(9001, tags=[h(OPEN), p(CAROL)])) == 'true,""]'
    found = await carol.request("m", {"kinds": [44100, 44101], "#p": [CAROL.pubkey]})
    assert {(each["kind"], each["content"]) for each in found} == {
        (44100, f'{{"type":"member_added","channel_id":"{OPEN}","actor":"{ALICE.pubkey}"}}'),
        (44101, f'{{"type":"member_removed","channel_id":"{OPEN}","actor":"{ALICE.pubkey}"}}'),
    }
    assert all(each["tags"] == [p(CAROL), h(OPEN)] for each in found)
