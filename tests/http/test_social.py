"""Notes and contact lists over HTTP: pages, cursors, what is left out, and how many statements it takes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from relay.nostr.event import Event
from relay.nostr.keys import SecretKey
from relay.store import events
from tests.support.http import Rig, new_key, signed

NOW = 1_700_000_000
QUERY = "Failed to deserialize query string: "


async def store(
    rig: Rig, author: SecretKey, at: int, kind: int = 1, *, tags: list[list[str]] | None = None,
    content: str = "", channel_id: str | None = None,
) -> Event:  # fmt: skip
    event = signed(author, kind, tags or [], content or f"at {at}", at)
    assert await events.insert_one(rig.con, event, channel_id)
    return event


def shown(event: Event) -> dict[str, Any]:
    return {"id": event.id, "pubkey": event.pubkey, "created_at": event.created_at, "content": event.content}


async def page(rig: Rig, author: SecretKey, query: str = "") -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    found = await rig.get(f"/api/users/{author.public_hex}/notes?{query}", key=new_key())
    assert found.status == 200, found.body
    assert set(found.json) == {"notes", "next_cursor"}
    return found.json["notes"], found.json["next_cursor"]


async def test_notes_that_were_just_published(rig: Rig) -> None:
    author = new_key()
    for text in ("first", "second"):
        assert (await rig.submit(author, 1, [], text)).json["accepted"] is True
    notes, cursor = await page(rig, author)
    assert {note["content"] for note in notes} == {"first", "second"}
    assert cursor is None
    assert (await page(rig, new_key())) == ([], None)


async def test_pages_within_one_second(rig: Rig) -> None:
    author = new_key()
    stored = [await store(rig, author, NOW + n // 5, content=f"note {n}") for n in range(23)]
    expected = [shown(event) for event in sorted(stored, key=lambda event: (-event.created_at, event.id))]
    for limit in (1, 2, 7, 22, 23, 24):
        whole: list[dict[str, Any]] = []
        query = f"limit={limit}"
        while True:
            notes, cursor = await page(rig, author, query)
            whole += notes
            assert len(whole) <= len(expected)
            if cursor is None:
                break
            assert len(notes) == limit
            assert cursor == {"before": notes[-1]["created_at"], "before_id": notes[-1]["id"]}
            query = f"limit={limit}&before={cursor['before']}&before_id={cursor['before_id'].upper()}"
        assert whole == expected
    # A second alone stands for what is older than it.
    assert (await page(rig, author, f"before={NOW + 2}"))[0] == [
        note for note in expected if note["created_at"] < NOW + 2
    ]


async def test_how_many(rig: Rig) -> None:
    author = new_key()
    stored = [shown(await store(rig, author, NOW + n)) for n in range(102)]
    newest = stored[::-1]
    for query, count in (("", 50), ("limit=0", 1), ("limit=1", 1), ("limit=100", 100), ("limit=4294967295", 100)):
        notes, cursor = await page(rig, author, query)
        assert notes == newest[:count]
        assert cursor == {"before": newest[count - 1]["created_at"], "before_id": newest[count - 1]["id"]}
    rest, cursor = await page(rig, author, f"limit=2&before={newest[99]['created_at']}")
    assert (rest, cursor) == (newest[100:], None)


async def test_what_is_left_out(rig: Rig) -> None:
    author, other = new_key(), new_key()
    channel_id = await rig.channel(author)
    past = int(time.time()) - 10
    kept = await store(rig, author, NOW, tags=[["expiration", str(past + 1000)]])
    await store(rig, author, NOW + 1, channel_id=channel_id)
    await store(rig, author, NOW + 2, kind=30023)
    await store(rig, other, NOW + 3)
    await store(rig, author, NOW + 4, tags=[["expiration", str(past)]])
    taken_back = await store(rig, author, NOW + 5)
    assert [note["id"] for note in (await page(rig, author))[0]] == [taken_back.id, kept.id]
    assert (await rig.submit(author, 5, [["e", taken_back.id]])).json["accepted"] is True
    assert await page(rig, author) == ([shown(kept)], None)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("before_id=xyz", "invalid before_id hex"),
        ("before=1&before_id=", "invalid before_id hex"),
        (f"before=1&before_id={'a' * 63}", "invalid before_id hex"),
        ("before=99999999999999&before_id=zz", "invalid before_id hex"),
        ("before=99999999999999", "invalid before timestamp"),
        (f"before=99999999999999&before_id={'ab' * 32}", "invalid before timestamp"),
        ("before=8210266876800", "invalid before timestamp"),
        ("before=-8334601228801", "invalid before timestamp"),
        (f"before={-(2**63)}", "invalid before timestamp"),
        (f"before_id={'ab' * 32}", "before_id requires before"),
    ],
)
async def test_cursors_that_are_none(rig: Rig, query: str, error: str) -> None:
    found = await rig.get(f"/api/users/{'ab' * 32}/notes?{query}", key=new_key())
    assert (found.status, found.json) == (400, {"error": error})


async def test_the_ends_of_the_calendar_are_cursors(rig: Rig) -> None:
    author = new_key()
    note = shown(await store(rig, author, NOW))
    assert await page(rig, author, "before=8210266876799") == ([note], None)
    assert await page(rig, author, "before=-8334601228800") == ([], None)
    assert await page(rig, author, f"before=-8334601228800&before_id={'00' * 32}") == ([], None)
    assert await page(rig, author, "before=0") == ([], None)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limit=-1", "limit: invalid digit found in string"),
        ("before=soon", "before: invalid digit found in string"),
        ("before=", "before: cannot parse integer from empty string"),
        ("before=9223372036854775808", "before: number too large to fit in target type"),
        ("before=1&before=2", "duplicate field `before`"),
        ("before_id=x&before_id=x", "duplicate field `before_id`"),
    ],
)
async def test_the_query_is_read_before_anybody_signs_in(rig: Rig, query: str, text: str) -> None:
    found = await rig.get(f"/api/users/nobody/notes?{query}")
    assert (found.status, found.text) == (400, QUERY + text)
    assert found.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_two_statements_with_the_sign_in(rig: Rig, count: int) -> None:
    author = new_key()
    for n in range(count):
        await store(rig, author, NOW + n)
    rig.statements.clear()
    notes, _ = await page(rig, author, "limit=100")
    assert len(notes) == min(count, 100)
    assert len(rig.statements) == 2, rig.statements


# -- contact lists -----------------------------------------------------------------------------------------------------


async def test_the_newest_contact_list(rig: Rig) -> None:
    me, friend = new_key(), new_key().public_hex
    path = f"/api/users/{me.public_hex}/contact-list"
    none = await rig.get(path, key=new_key())
    assert (none.status, none.json) == (404, {"error": "contact list not found"})
    now = int(time.time())
    older = signed(me, 3, [["p", friend]], "", now - 5)
    newer = signed(me, 3, [["p", friend, "wss://elsewhere", "Ada"], ["t", "x", ""]], "free text", now)
    for event in (newer, older):
        assert (await rig.post("/api/events", key=me, data=event.json)).status == 200
    rig.statements.clear()
    found = await rig.get(f"/api/users/{me.public_hex.upper()}/contact-list", key=new_key())
    assert (found.status, found.json) == (
        200,
        shown(newer) | {"tags": [["p", friend, "wss://elsewhere", "Ada"], ["t", "x", ""]]},
    )
    assert len(rig.statements) == 2, rig.statements
    assert (await rig.submit(me, 5, [["e", newer.id]])).json["accepted"] is True
    assert (await rig.get(path, key=new_key())).status == 404
