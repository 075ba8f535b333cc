"""Admission: each kind with its right and its channel, each refusal with its text, and the order of the checks."""

from __future__ import annotations

from functools import partial

import pytest

from relay.access.directory import Directory
from relay.access.identity import KNOWN_SCOPES
from relay.access.scopes import STORED
from relay.asyncpg_trio import Pool
from relay.config import load
from relay.errors import Refusal, RefusalClass
from relay.ingest.admit import Admitter, route_of
from relay.ingest.types import Door, Route
from relay.nostr.event import Event
from tests.support.admission import (
    ALICE,
    ARCHIVED,
    BOB,
    CAROL,
    DELETED,
    DERIVED,
    GLOBAL,
    NOW,
    NOWHERE,
    OPEN,
    OPTIONAL,
    PLAIN,
    PRIVATE,
    PROXY,
    REPO,
    REQUIRED,
    SHA,
    SHORT,
    STOCK,
    UNKNOWN,
    admitted,
    an_event,
    caller,
    h,
    refused,
    to,
)

# -- each kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORED)
async def test_each_kind_with_its_right_and_its_channel(admitter: Admitter, kind: int) -> None:
    scope = STORED[kind]
    channel = None if kind in GLOBAL else OPEN
    event = an_event(kind, OPEN)
    with_right = await admitted(admitter, event, caller(BOB, scope))
    assert (with_right.channel_id, with_right.route) == (channel, route_of(kind))
    assert with_right.route is (Route.PLAIN if kind in PLAIN else Route.EFFECT)
    assert with_right.member == (None if channel is None or kind in OPTIONAL else BOB.pubkey)
    others = caller(BOB, *(KNOWN_SCOPES - {scope}))
    assert await refused(admitter, event, others) == f"restricted: insufficient scope (need {scope})"
    proxied = await admitted(admitter, event, PROXY.caller)
    assert (proxied.channel_id, proxied.member) == (channel, None)


@pytest.mark.parametrize("kind", STORED)
async def test_each_kind_without_a_channel(admitter: Admitter, kind: int) -> None:
    event = an_event(kind)
    if kind in REQUIRED:
        assert await refused(admitter, event) == "invalid: channel-scoped events must include an h tag"
        misspelt = an_event(kind, "nonsense")
        assert await refused(admitter, misspelt) == "invalid: channel-scoped events must include an h tag"
    else:
        assert (await admitted(admitter, event)).channel_id == (OPEN if kind in DERIVED else None)


@pytest.mark.parametrize("kind", sorted(set(STORED) - GLOBAL))
async def test_each_kind_asks_for_membership(admitter: Admitter, kind: int) -> None:
    for channel, text in (
        (PRIVATE, "restricted: not a channel member"),
        (UNKNOWN, "restricted: not a channel member"),
        (DELETED, "restricted: not a channel member"),
        (ARCHIVED, "invalid: channel is archived"),
    ):
        event = an_event(kind, channel)
        if kind in DERIVED:
            if channel not in (PRIVATE, ARCHIVED):
                continue
            event = BOB.sign(kind, "+", [to("elsewhere" if channel == PRIVATE else "archived")])
        if kind in OPTIONAL:
            assert (await admitted(admitter, event)).channel_id == channel
        else:
            assert await refused(admitter, event) == text


@pytest.mark.parametrize("kind", STORED)
async def test_each_kind_obeys_the_channels_of_a_token(admitter: Admitter, kind: int) -> None:
    event = an_event(kind, OPEN)
    if kind in GLOBAL:
        for channel_ids in ({OPEN}, set[str]()):
            tied = caller(BOB, channel_ids=channel_ids)
            assert await refused(admitter, event, tied) == (
                "restricted: channel-scoped tokens cannot publish global events"
            )
        return
    await admitted(admitter, event, caller(BOB, channel_ids={OPEN}))
    assert await refused(admitter, event, caller(BOB, channel_ids={PRIVATE})) == (
        "restricted: token does not have access to this channel"
    )


@pytest.mark.parametrize("kind", [2, 41, 9009, 10000, 22242, 30024, 39000, 40001, 40099, 46010, 48107, 49001])
async def test_other_kinds(admitter: Admitter, kind: int) -> None:
    for door in Door:
        text = {Door.WEBSOCKET: "invalid: AUTH events cannot be submitted via EVENT"} if kind == 22242 else {}
        expected = "invalid: AUTH events cannot be submitted" if kind == 22242 else "restricted: unknown event kind"
        for who in (BOB.caller, PROXY.caller):
            assert await refused(admitter, an_event(kind, OPEN), who, door) == text.get(door, expected)


async def test_the_channel_may_be_spelt_in_other_ways(admitter: Admitter) -> None:
    for spelling in (OPEN.upper(), OPEN.replace("-", ""), f"urn:uuid:{OPEN}", f"{{{OPEN}}}"):
        assert (await admitted(admitter, an_event(9, spelling))).channel_id == OPEN
    twice = BOB.sign(9, "", [h("nonsense"), ["h"], h(OPEN), h(PRIVATE)])
    assert (await admitted(admitter, twice)).channel_id == OPEN


async def test_only_unarchiving_enters_an_archived_channel(admitter: Admitter) -> None:
    def edit(*values: str) -> Event:
        return ALICE.sign(9002, "", [h(ARCHIVED), *(["archived", value] for value in values)])

    assert (await admitted(admitter, edit("false"), ALICE.caller)).channel_id == ARCHIVED
    for values in ((), ("true",), ("False",)):
        assert await refused(admitter, edit(*values), ALICE.caller) == "invalid: channel is archived"
    writer = caller(ALICE, "channels:write")
    assert await refused(admitter, edit("false"), writer) == "restricted: insufficient scope (need admin:channels)"


async def test_an_event_prolongs_the_life_of_its_channel(admitter: Admitter) -> None:
    for kind in (9, 7, 48104):
        event = an_event(kind, SHORT)
        assert (await admitted(admitter, event)).touches_ttl is (kind != 7)
    assert not (await admitted(admitter, an_event(9, OPEN))).touches_ttl


# -- each text ---------------------------------------------------------------------------------------------------------

WRONG = "zz" * 32
IMETA = ["imeta", f"url /media/{SHA}.png", "m image/png", f"x {SHA}", "size 5"]


@pytest.mark.parametrize(
    ("kind", "tags", "text"),
    [
        (7, [], "reaction must reference a target event via e tag"),
        (7, [["e", WRONG]], "malformed reaction target id"),
        (7, [to("message"), NOWHERE], "reaction target event not found"),
        (7, [to("deleted")], "reaction target event not found"),
        (40003, [], "missing e tag for edit target"),
        (40003, [["e", WRONG]], "missing e tag for edit target"),
        (40003, [NOWHERE], "edit target event not found"),
        (40003, [to("deleted")], "edit target event not found"),
        (40003, [to("expired")], "edit target event not found"),
        (40003, [to("elsewhere")], "target event belongs to a different channel"),
        (40003, [to("note")], "target event has no channel"),
        (40003, [to("foreign")], "must be event author to edit"),
        (45002, [], "missing e tag for vote target"),
        (45002, [NOWHERE], "vote target event not found"),
        (45002, [to("deleted")], "vote target event not found"),
        (45002, [to("elsewhere")], "target event belongs to a different channel"),
        (45002, [to("note")], "target event has no channel"),
        (45002, [to("message")], "vote target must be a forum post or comment"),
        (40008, [["repo", "ssh://x"]], "repo URL must be http or https"),
        (40008, [], "diff event requires a repo tag"),
        (9, [IMETA[:-1]], "imeta tag must include url, m, x, and size"),
        (1, [IMETA, [*IMETA, "colour red"]], "disallowed imeta key: colour"),
        (30023, [["imeta"]], "imeta tag must include url, m, x, and size"),
        (9002, [["imeta"]], "imeta tag must include url, m, x, and size"),
        (9, [[*NOWHERE, "", "reply"]], "reply parent not found"),
        (9, [to("deleted", "", "reply")], "reply parent not found"),
        (9, [to("expired", "", "reply")], "reply parent not found"),
        (9, [to("elsewhere", "", "reply")], "parent event belongs to a different channel"),
        (9, [to("note", "", "reply")], "parent event has no channel association"),
        (9, [to("message", "", "reply"), to("foreign", "", "root")], "root tag does not match thread ancestry"),
        (9, [["expiration", str(NOW)]], "event has expired"),
    ],
)
async def test_each_text(admitter: Admitter, kind: int, tags: list[list[str]], text: str) -> None:
    event = BOB.sign(kind, "", [h(OPEN), *tags])
    for door in Door:
        found = await admitter.admit(event, BOB.caller, door)
        assert found == Refusal(f"invalid: {text}", RefusalClass.INVALID)


@pytest.mark.parametrize(
    ("kind", "tags"),
    [
        (40003, [to("message")]),
        (40003, [["e", WRONG], to("for bob"), NOWHERE]),
        (45002, [to("post")]),
        (45002, [to("comment")]),
        (9, [IMETA, IMETA]),
        (9, [["imeta", f"url https://team.example/media/{SHA}.png", *IMETA[2:]]]),
        (9, [NOWHERE, [*NOWHERE, "", "root"], [*NOWHERE, "", "mention"]]),
        (9, [["expiration", str(NOW + 1)], ["-"]]),
        # Only messages answer messages.
        (1, [[*NOWHERE, "", "reply"]]),
        (40100, [[*NOWHERE, "", "reply"]]),
        (40003, [[*to("message"), "", "reply"]]),
        (48100, [[*NOWHERE, "", "reply"]]),
    ],
)
async def test_what_is_in_order(admitter: Admitter, kind: int, tags: list[list[str]]) -> None:
    assert (await admitted(admitter, BOB.sign(kind, "", [h(OPEN), *tags]))).thread is None


@pytest.mark.parametrize("kind", [9, 40002, 40004, 40005, 40006, 40007, 40008, 45001, 45003])
async def test_messages_may_answer_messages(admitter: Admitter, kind: int) -> None:
    reply = an_event(kind, OPEN, BOB, to("foreign", "", "reply"), ["broadcast", "1"])
    place = (await admitted(admitter, reply)).thread
    foreign = STOCK["foreign"][0].id
    assert place is not None
    assert (place.parent, place.root, place.depth, place.broadcast) == (foreign, foreign, 1, True)


async def test_the_media_may_be_elsewhere(stocked_dsn: str) -> None:
    settings = load({"database_url": stocked_dsn, "media_base_url": "https://cdn.example/files/"})
    async with Pool(stocked_dsn, size_max=1, size_min=0) as pool:
        admitter = Admitter(settings, Directory(pool, settings), pool, lambda: NOW * 1_000_000, relay_pubkey="")
        event = BOB.sign(1, "", [["imeta", f"url https://cdn.example/files/{SHA}.png", *IMETA[2:]]])
        await admitted(admitter, event)
        foreign = BOB.sign(1, "", [["imeta", f"url https://team.example/media/{SHA}.png", *IMETA[2:]]])
        assert await refused(admitter, foreign) == "invalid: imeta url must be a local /media/ path"


async def test_the_first_check_that_fails_gives_its_text(admitter: Admitter) -> None:
    """Every fault at once, and then one less each time."""
    tied = caller(CAROL, "users:write", channel_ids={OPEN})
    event = ALICE.sign(40003, "x" * 262_145, [["imeta"], [*NOWHERE, "", "reply"]], at=NOW - 901)
    event.content += "y"
    seen = [await refused(admitter, event, tied)]
    seen.append(await refused(admitter, event, tied, Door.HTTP))
    for kind, content, at, tags in (
        (40003, "x" * 262_145, NOW - 901, [["imeta"]]),
        (40003, "x" * 262_145, NOW, [["imeta"]]),
        (40003, "", NOW, [["imeta"]]),
    ):
        seen.append(await refused(admitter, ALICE.sign(kind, content, tags, at=at), tied, Door.HTTP))
    expired, protected = ["expiration", "1"], ["-"]
    signed = partial(CAROL.sign, 40003, "x" * 10)
    seen.append(await refused(admitter, signed([["imeta"], expired, protected]), tied))
    seen.append(await refused(admitter, signed([["imeta"]]), tied))
    writer = caller(CAROL, "messages:write", channel_ids={OPEN})
    seen.append(await refused(admitter, signed([["imeta"]]), writer))
    seen.append(await refused(admitter, signed([["imeta"], h(PRIVATE)]), writer))
    seen.append(await refused(admitter, signed([["imeta"], h(PRIVATE)]), CAROL.caller))
    seen.append(await refused(admitter, signed([["imeta"], h(ARCHIVED)]), CAROL.caller))
    seen.append(await refused(admitter, signed([["imeta"], h(OPEN)]), CAROL.caller))
    seen.append(await refused(admitter, signed([["imeta"], h(OPEN), to("foreign")]), ALICE.caller, Door.HTTP))
    assert [text.partition(": computed")[0] for text in seen] == [
        "invalid: event pubkey does not match authenticated identity",
        "invalid: invalid event id",
        "invalid: event timestamp too far from server time",
        "invalid: content exceeds maximum size of 262144 bytes (got 262145)",
        "invalid: event pubkey does not match authenticated identity",
        "invalid: event has expired",
        "restricted: insufficient scope (need messages:write)",
        "invalid: channel-scoped events must include an h tag",
        "restricted: token does not have access to this channel",
        "restricted: not a channel member",
        "invalid: channel is archived",
        "invalid: missing e tag for edit target",
        "invalid: event pubkey does not match authenticated identity",
    ]


async def test_what_nobody_may_send_and_nothing_could_keep(admitter: Admitter) -> None:
    for door in Door:
        for kind in (44100, 44101):
            assert await refused(admitter, BOB.sign(kind), BOB.caller, door) == (
                "invalid: membership notifications are relay-signed only"
            )
        for event in (BOB.sign(9, "a\0b", [h(OPEN)]), BOB.sign(9, "", [h(OPEN), ["t", "\0"]])):
            assert await refused(admitter, event, BOB.caller, door) == "invalid: event must not contain NUL characters"
        old, impossible = BOB.sign(9, "", [h(OPEN)], at=0), BOB.sign(9, "", [h(OPEN)], at=2**63)
        await admitted(admitter, old, PROXY.caller, door)
        assert await refused(admitter, impossible, PROXY.caller, door) == (
            "invalid: event timestamp too far from server time"
        )
    # As text, a backslash and digits are no NUL.
    await admitted(admitter, BOB.sign(9, "\\u0000", [h(OPEN)]))


async def test_a_diff_is_looked_at_before_its_files_and_its_thread(admitter: Admitter) -> None:
    faults = [h(OPEN), ["imeta"], [*NOWHERE, "", "reply"]]
    assert await refused(admitter, BOB.sign(40008, "", faults)) == "invalid: diff event requires a repo tag"
    assert await refused(admitter, BOB.sign(40008, "", [*faults, *REPO])) == (
        "invalid: imeta tag must include url, m, x, and size"
    )
