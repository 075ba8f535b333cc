"""Searching in scripts without blanks: every part of a text finds it, and the index finds the candidates."""

from __future__ import annotations

import random
from typing import Any

import pytest

from relay.asyncpg_trio import Pool
from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.count import count
from relay.query.replay import Limits
from relay.query.search import PLANNING, hits, scored
from relay.query.words import words
from tests.query.stock import CHANNELS, NOW, Filed, store
from tests.query.test_search import EVERYTHING, find, said

TEXTS = [
    "新しい東京サーバーを公開しました",
    "東京と京都に行く",
    "今日は、いい天気ですね。",
    "iPhone用アプリの更新",
    "สวัสดีครับทุกคน",
    "한국어는 어렵다",
    "部署 v2 到 production 环境",
    "𠮷野家で待つ",
    "ﾃｽﾄ ｶﾀｶﾅ",
    "plain latin, größer",
]


async def counted(pool: Pool, text: str) -> int:
    return await count(pool, [(Filter(search=text), EVERYTHING)], now=NOW, statement_seconds=10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("東京", [0, 1]),
        ("京都", [1]),
        ("東", [0, 1]),
        ("都", [1]),
        ("東都", []),
        ("サーバー", [0]),
        ("新しい東京サーバーを公開しました", [0]),
        ("いい天気", [2]),
        ("「今日は、いい天気」", [2]),
        ("ね。", [2]),
        ("IPHONE用", [3]),
        ("アプリ", [3]),
        ("phone用", [3]),
        ("ทุก", [4]),
        ("ค", [4]),
        ("한국", [5]),
        ("국어", [5]),
        ("部署 環境", [6]),
        ("部署 环境", [6]),
        ("環境 production", [6]),
        ("𠮷野", [7]),
        ("ｽﾄ", [8]),
        ("größ", [9]),
    ],
)
async def test_what_a_part_finds(pool: Pool, text: str, expected: list[int]) -> None:
    stock = [said(content, number) for number, content in enumerate(TEXTS)]
    await store(pool, stock)
    assert sorted(await find(pool, stock, text)) == sorted(TEXTS[number] for number in expected)
    assert await counted(pool, text) == len(expected)


@pytest.mark.parametrize("seed", range(3))
async def test_every_part_of_every_text(pool: Pool, seed: int) -> None:
    """Against looking into every text: pieces cut out anywhere, and pieces put together."""
    rng = random.Random(seed)
    alphabet = "日本語東京한국กขあアb1、 "
    stock = [said("".join(rng.choices(alphabet, k=rng.randrange(1, 12))), number) for number in range(150)]
    await store(pool, stock)
    for _ in range(60):
        if rng.random() < 0.7:
            content = rng.choice(stock).event.content
            start = rng.randrange(len(content))
            typed = content[start : start + rng.randrange(1, 5)]
        else:
            typed = "".join(rng.choices(alphabet, k=rng.randrange(1, 4)))
        searched = words(typed)
        if not searched or not all(word.pieces for word in searched):
            continue
        every = [each for each in stock if all(has(each, word.pieces) for word in searched)]
        some = [each for each in stock if any(has(each, word.pieces) for word in searched)]
        found = await find(pool, stock, typed)
        assert sorted(found) == sorted(each.event.content for each in some), typed
        assert sorted(found[: len(every)]) == sorted(each.event.content for each in every), typed
        assert await counted(pool, typed) == len(some)


def has(each: Filed, pieces: tuple[str, ...]) -> bool:
    return all(piece.lower() in each.event.content.lower() for piece in pieces)


async def test_of_a_very_long_text_the_beginning_is_found(pool: Pool) -> None:
    """The longest content there may be, nearly every pair of it another one."""
    rng = random.Random(1)
    content = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(262_144 // 3))
    stock = [said(content)]
    await store(pool, stock)
    assert await find(pool, stock, content[:5]) == [content]
    assert await find(pool, stock, content[16_000:16_100]) == [content]
    assert await find(pool, stock, content[-5:]) == []


async def test_all_words_before_some_whatever_their_script(pool: Pool) -> None:
    stock = [
        said("deploy 東京 done", 0),
        said("東京 only", 5),
        said("deploy only", 6),
        said("東京 and done", 7),
        said("nothing", 8),
    ]
    await store(pool, stock)
    found = await find(pool, stock, "deploy 東京 done")
    assert found[0] == "deploy 東京 done"
    assert found[1] == "東京 and done"
    assert set(found[2:]) == {"東京 only", "deploy only"}
    assert await find(pool, stock, "deploy 東京 done", limit=1) == ["deploy 東京 done"]


async def test_what_no_search_finds(pool: Pool) -> None:
    kinds = (1059, 40099, 44100, 44101, 48101, 48102, 48103)
    stock = [said(f"東京 {kind}", kind=kind) for kind in kinds]
    stock += [said("東京 over", 2, tags=[["h", CHANNELS[0]], ["expiration", str(NOW)]]), said("東京 foreign", 3)]
    stock.append(Filed(said("東京 gone", 4).event, CHANNELS[0], deleted=True))
    await store(pool, stock)
    elsewhere = Reach(frozenset(CHANNELS[1:]))
    assert await find(pool, stock, "東京") == ["東京 foreign"]
    assert await find(pool, stock, "東京", elsewhere) == []


async def test_the_last_word_may_be_a_beginning(pool: Pool) -> None:
    stock = [said("deployment", 9), said("deploy", 1), said("a deployed server", 5), said("redeploy", 3)]
    await store(pool, stock)
    assert (await find(pool, stock, "deploy"))[0] == "deploy"
    assert set(await find(pool, stock, "deploy")) == {"deploy", "deployment", "a deployed server"}
    assert await find(pool, stock, "deploy server") == ["a deployed server", "deploy"]
    assert await find(pool, stock, "server depl") == ["a deployed server", "deployment", "deploy"]
    # One letter begins too many words.
    assert await find(pool, stock, "d") == []
    assert await find(pool, stock, "a") == ["a deployed server"]


@pytest.mark.parametrize(
    ("whole", "shortest"),
    [
        ("9f3c-11ab", "9f3c-1"),
        ("foo-barista-größe", "foo-b"),
        ("9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", "9b1deb4d-3"),
        ("PROJ-1234", "PROJ-1"),
        ("2024-01-15", "2024-0"),
        ("https://example.com/path/a-page?of=it", "https://example.c"),
        ("src/relay/main.py", "src/r"),
        ("alice@example.com", "alice@e"),
    ],
)
async def test_every_beginning_of_a_word_in_parts(pool: Pool, whole: str, shortest: str) -> None:
    """The parser cuts a beginning otherwise than the whole."""
    stock = [said(f"see {whole} there", 1), said("11a 9f3c bar foo 9b1deb4d proj 2024 example.org src alice", 2)]
    await store(pool, stock)
    for end in range(len(shortest), len(whole) + 1):
        assert await find(pool, stock, whole[:end]) == [stock[0].event.content], whole[:end]
        assert await find(pool, stock, f"see {whole[:end].upper()}") == [stock[0].event.content], whole[:end]


async def test_words_with_marks_are_never_an_error(pool: Pool) -> None:
    """Of such a word the statement makes more of a query than PostgreSQL's own functions do."""
    stock = [said("hello a-b/c@d")]
    await store(pool, stock)
    rng = random.Random(1)
    for typed in (
        "ü-" * 500,
        "@" + "🙂x" * 500,
        "-/@" * 300 + "x",
        *("".join(rng.choices("-/@'\\\\ab1 .:*<>&|!()é", k=9)) for _ in range(300)),
    ):
        await find(pool, stock, typed)


async def test_scores_and_names(pool: Pool) -> None:
    stock = [said("word", 1), said("word and much more", 2, None), said("東京", 3)]
    await store(pool, stock)

    async def found(text: str, **more: Any) -> dict[str, tuple[float, str | None]]:
        wanted = Filter(search=text)
        contents = {each.event.id: each.event.content for each in stock}
        return {
            contents[hit.row.id.hex()]: (hit.score, hit.channel_name)
            for hit in await scored(pool, wanted, EVERYTHING, Limits(), now=NOW, **more)
        }

    by_word = await found("word")
    assert {content: name for content, (_, name) in by_word.items()} == {"word": "c", "word and much more": None}
    assert all(score > 0 for score, _ in by_word.values())
    assert (await found("東京"))["東京"][0] > 0
    assert await found("*", newest=True) == {
        "東京": (0.0, "c"), "word and much more": (0.0, None), "word": (0.0, "c"),
    }  # fmt: skip


# -- cost --------------------------------------------------------------------------------------------------------------

FILL = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
SELECT sha256(n::text::bytea), sha256(''), n, 9, '[]',
       'common' || CASE WHEN n % 10 = 0 THEN ' 今日' ELSE '' END || CASE WHEN n % 2000 = 0 THEN ' 東京都庁' ELSE '' END,
       decode(repeat('00', 64), 'hex'), NULL, '{}'
FROM generate_series(1, 20000) AS n"""


async def plan(pool: Pool, text: str, limit: int) -> str:
    """How the statement of a search was executed."""
    asked: list[tuple[str, tuple[Any, ...]]] = []
    async with pool.transaction(readonly=True) as con:
        fetch = con.fetch

        class Recording:
            """The connection, with its arguments seen."""

            execute = con.execute

            async def fetch(self, query: str, *args: Any) -> Any:
                asked.append((query, args))
                return await fetch(query, *args)

        class Lender:
            def transaction(self, *, readonly: bool = False) -> Any:
                assert readonly
                return self

            async def __aenter__(self) -> Recording:
                return Recording()

            async def __aexit__(self, *_: object) -> None:
                pass

        lender: Any = Lender()
        await hits(lender, Filter(search=text, limit=limit), EVERYTHING, Limits(), now=NOW)
        [(statement, arguments)] = asked
        await con.execute(PLANNING)
        rows = await con.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", *arguments)
    return "\n".join(row[0] for row in rows)


async def test_plans(pool: Pool) -> None:
    async with pool.acquire() as con:
        await con.execute(FILL)
        await con.execute("VACUUM ANALYZE events")
    rare = await plan(pool, "東京都", 20)
    assert "events_runs" in rare, rare
    assert "Seq Scan on events" not in rare, rare
    common = await plan(pool, "今日", 20)
    assert "events_newest" in common, common
    # Enough rows have all of the words: nobody looks for those with some.
    enough = await plan(pool, "common 今日", 20)
    assert "One-Time Filter" in enough, enough
    assert "never executed" in enough, enough
    too_few = await plan(pool, "common 東京都庁", 20)
    assert too_few.count("never executed") < enough.count("never executed"), too_few
