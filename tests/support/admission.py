"""What admission is tried on: channels of every sort, the events that stand in them, and an event of each kind."""

from __future__ import annotations

import dataclasses
import time

from relay.access.identity import KNOWN_SCOPES, Caller
from relay.access.scopes import STORED
from relay.asyncpg_trio import connect
from relay.errors import Refusal
from relay.ingest.admit import Admitter
from relay.ingest.types import Admission, Door
from relay.nostr.event import Event, sign_event
from relay.nostr.keys import SecretKey
from relay.store import channels, events, members
from tests.support.core import Person

OPEN, PRIVATE, ARCHIVED, DELETED, SHORT, UNKNOWN = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123456")
RELAY = SecretKey.from_hex("77" * 32)
NOW = int(time.time())
"""What the admitter's clock shows, however long after the import a test runs."""
SHA, REPO = "ab" * 32, [["repo", "https://git.example/x"], ["commit", "abcdef0"]]


class Punctual(Person):
    """Signs at `NOW`."""

    def sign(self, kind: int, content: str = "", tags: list[list[str]] | None = None, at: int | None = None) -> Event:
        return super().sign(kind, content, tags, NOW if at is None else at)


ALICE, BOB, CAROL = Punctual.number(1), Punctual.number(2), Punctual.number(3)


def h(channel: str) -> list[str]:
    return ["h", channel]


# What the channels hold, under the names that the tests use.
STOCK: dict[str, tuple[Event, str | None]] = {
    "message": (BOB.sign(9, "message", [h(OPEN)]), OPEN),
    "foreign": (ALICE.sign(9, "foreign", [h(OPEN)]), OPEN),
    "post": (ALICE.sign(45001, "post", [h(OPEN)]), OPEN),
    "comment": (ALICE.sign(45003, "comment", [h(OPEN)]), OPEN),
    "elsewhere": (BOB.sign(9, "elsewhere", [h(PRIVATE)]), PRIVATE),
    "archived": (BOB.sign(9, "archived", [h(ARCHIVED)]), ARCHIVED),
    "note": (BOB.sign(1, "note"), None),
    "deleted": (BOB.sign(9, "deleted", [h(OPEN)]), OPEN),
    "expired": (BOB.sign(9, "expired", [h(OPEN), ["expiration", "1"]]), OPEN),
    "for bob": (
        sign_event(RELAY, created_at=NOW, kind=9, tags=[h(OPEN), ["actor", BOB.pubkey]], content="for bob"),
        OPEN,
    ),
}


def to(name: str, *more: str) -> list[str]:
    return ["e", STOCK[name][0].id, *more]


NOWHERE = ["e", "ee" * 32]

# Tags and content that make an event of the kind acceptable, beside its channel.
BODY: dict[int, tuple[list[list[str]], str]] = {
    0: ([], "{}"),
    5: ([to("message")], ""),
    7: ([to("message")], "+"),
    9000: ([["p", CAROL.pubkey]], ""),
    9001: ([["p", CAROL.pubkey]], ""),
    9002: ([["topic", "t"]], ""),
    9005: ([to("message")], ""),
    9007: ([["name", "n"]], ""),
    40003: ([to("message")], "edited"),
    40008: (REPO, "--- a\n+++ b\n"),
    45002: ([to("post")], "+"),
}
GLOBAL = {0, 1, 3, 1059, 30023}
DERIVED = {5, 7}
OPTIONAL = {9007, 9021}
REQUIRED = set(STORED) - GLOBAL - DERIVED - OPTIONAL
PLAIN = {1, 9, 1059, *range(40002, 40009), 40100, 45001, 45002, 45003, *range(48100, 48107)}
EPHEMERAL = [20000, 20001, 20002, 22241, 22243, 24134, 24242, 27235, 29999]


def an_event(kind: int, channel: str | None = None, person: Person = BOB, *more: list[str]) -> Event:
    tags, content = BODY.get(kind, ([], ""))
    return person.sign(kind, content, [*([] if channel is None else [h(channel)]), *tags, *more])


def caller(person: Person, *scopes: str, channel_ids: set[str] | None = None) -> Caller:
    tied = None if channel_ids is None else frozenset(channel_ids)
    return dataclasses.replace(person.caller, scopes=frozenset(scopes) or KNOWN_SCOPES, channel_ids=tied)


PROXY = Person.number(9, scopes=frozenset({"proxy:submit"}))


async def fill(dsn: str) -> None:
    """Writes the channels and the stock into a database with our schema."""
    con = await connect(dsn)
    for channel in (OPEN, PRIVATE, ARCHIVED, DELETED, SHORT):
        await channels.create(
            con,
            channel_id=channel,
            name="x",
            channel_type="stream",
            visibility="private" if channel == PRIVATE else "open",
            description=None,
            created_by=ALICE.pubkey,
            ttl_seconds=60 if channel == SHORT else None,
        )
        await members.put(con, channel, ALICE.pubkey, "owner", None)
    await con.execute("UPDATE channels SET archived_at = now() WHERE id = $1", ARCHIVED)
    await con.execute("UPDATE channels SET deleted_at = now() WHERE id = $1", DELETED)
    for event, channel_id in STOCK.values():
        await events.insert_one(con, event, channel_id)
    await events.mark_deleted(con, STOCK["deleted"][0].id)
    con.terminate()


async def admitted(
    admitter: Admitter, event: Event, who: Caller = BOB.caller, door: Door = Door.WEBSOCKET
) -> Admission:
    found = await admitter.admit(event, who, door)
    assert isinstance(found, Admission), found
    return found


async def refused(admitter: Admitter, event: Event, who: Caller = BOB.caller, door: Door = Door.WEBSOCKET) -> str:
    found = await admitter.admit(event, who, door)
    assert isinstance(found, Refusal), found
    return found.text
