"""GET /api/users/search: what is found, in which order, how much of it; and that nothing a person types is an error."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.support.http import Rig, new_key

QUERY = "Failed to deserialize query string: "


async def add(rig: Rig, name: str | None, handle: str | None = None, pubkey: str | None = None) -> str:
    pubkey = pubkey or new_key().public_hex
    await rig.con.execute(
        "INSERT INTO users (pubkey, display_name, nip05_handle) VALUES ($1, $2, $3)",
        bytes.fromhex(pubkey),
        name,
        handle,
    )
    return pubkey


async def names(rig: Rig, query: str) -> list[str | None]:
    found = await rig.get(f"/api/users/search?{query}", key=new_key())
    assert found.status == 200, found.body
    assert set(found.json) == {"users"}
    return [user["display_name"] for user in found.json["users"]]


async def test_a_hit(rig: Rig) -> None:
    pubkey = await add(rig, "Ada Lovelace", "ada@localhost")
    found = await rig.get("/api/users/search?q=LOVE", key=new_key())
    assert found.json == {
        "users": [
            {"pubkey": pubkey, "display_name": "Ada Lovelace", "avatar_url": None, "nip05_handle": "ada@localhost"}
        ]
    }


async def test_the_best_come_first(rig: Rig) -> None:
    for name, handle in (
        ("zzz zoe", None),
        ("Zoe Zimmer", None),
        ("zoe", None),
        ("Zoe Adams", None),
        ("somebody", "zoe@localhost"),
    ):
        await add(rig, name, handle)
    assert await names(rig, "q=ZOE") == ["zoe", "Zoe Adams", "Zoe Zimmer", "somebody", "zzz zoe"]
    assert await names(rig, "q=zoe%40localhost") == ["somebody"]
    assert await names(rig, "q=%20%09zoe%20&limit=2") == ["zoe", "Zoe Adams"]


async def test_by_key(rig: Rig) -> None:
    first, second = "beef" + "0" * 60, "0" * 60 + "beef"
    await add(rig, "at the end", pubkey=second)
    await add(rig, "in front", pubkey=first)
    assert await names(rig, "q=BEEF") == ["in front", "at the end"]
    assert await names(rig, f"q={first.upper()}") == ["in front"]


async def test_how_many(rig: Rig) -> None:
    for n in range(60):
        await add(rig, f"person {n:02}")
    expected = [f"person {n:02}" for n in range(60)]
    assert await names(rig, "q=person") == expected[:8]
    for limit, count in ((0, 1), (1, 1), (9, 9), (50, 50), (51, 50), (2**32 - 1, 50)):
        assert await names(rig, f"q=person&limit={limit}") == expected[:count]


@pytest.mark.parametrize(
    "text",
    [
        *"%_\\'\"*&|!<>():",
        "\0", "a\0b", "\n", "%%", "\\\\", "a:*", "' OR 1=1 --", "\u202e", "\ufffd", "🦊" * 50, "x" * 200, "ä" * 100,
    ],
)  # fmt: skip
async def test_odd_texts_find_nobody(rig: Rig, text: str) -> None:
    await add(rig, "Ada")
    assert await names(rig, f"q={quote(text)}") == []


async def test_bytes_that_are_no_text(rig: Rig) -> None:
    await add(rig, "Ada")
    assert await names(rig, "q=%ff%fe") == []


async def test_blank_asks_nothing(rig: Rig) -> None:
    await add(rig, "Ada")
    for blank in ("q=", "q", "q=%20%20", "q=%0A", "q=+"):
        rig.statements.clear()
        assert await names(rig, blank) == []
        assert len(rig.statements) == 1


async def test_too_long(rig: Rig) -> None:
    for text in ("x" * 201, quote("ä" * 101)):
        found = await rig.get(f"/api/users/search?q={text}", key=new_key())
        assert (found.status, found.json) == (400, {"error": "search query too long (max 200 characters)"})
    # What stands around it does not count.
    assert await names(rig, "q=" + "%20" * 100 + "x" * 200) == []


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "missing field `q`"),
        ("limit=3", "missing field `q`"),
        ("q=a&q=b", "duplicate field `q`"),
        ("q=a&limit=x", "limit: invalid digit found in string"),
        ("q=a&limit=-1", "limit: invalid digit found in string"),
        ("q=a&limit=", "limit: cannot parse integer from empty string"),
        ("q=a&limit=4294967296", "limit: number too large to fit in target type"),
    ],
)
async def test_the_query_is_read_before_anybody_signs_in(rig: Rig, query: str, text: str) -> None:
    found = await rig.get(f"/api/users/search?{query}")
    assert (found.status, found.text) == (400, QUERY + text)
    assert found.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("count", [1, 20, 200])
async def test_two_statements_with_the_sign_in(rig: Rig, count: int) -> None:
    for n in range(count):
        await add(rig, f"person {n}")
    rig.statements.clear()
    assert len(await names(rig, "q=person&limit=50")) == min(count, 50)
    assert len(rig.statements) == 2, rig.statements
