"""NIP-50: which words find which events, in which order, at which cost."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from relay.asyncpg_trio import Pool
from relay.nostr.event import Event
from relay.nostr.filter import Filter
from relay.query.conditions import Reach
from relay.query.replay import Limits
from relay.query.search import HITS_MAX, PLANNING, hits
from relay.query.words import WORDS_MAX, Word, words
from tests.query.stock import AUTHORS, CHANNELS, NOW, START, Filed, store

EVERYTHING = Reach(frozenset(CHANNELS))
TOKEN = "searchtoken_9dd4e461268c8034f5c8564e155c67a6"


def said(content: str, at: int = 0, channel: str | None = CHANNELS[0], **fields: Any) -> Filed:
    """A message; its id follows from what it says."""
    tags = [] if channel is None else [["h", channel]]
    given = {"kind": 9, "pubkey": AUTHORS[0], "tags": tags} | fields
    digits = f"{random.Random(f'{content}{at}{channel}').getrandbits(256):064x}"
    return Filed(Event(id=digits, created_at=START + at, content=content, sig="00" * 64, **given), channel)


async def find(
    pool: Pool, stock: list[Filed], text: str, reach: Reach = EVERYTHING, limit: int | None = None, **conditions: Any
) -> list[str]:
    """What a search finds, in its order, as contents."""
    contents = {each.event.id: each.event.content for each in stock}
    wanted = Filter(search=text, limit=limit, **conditions)
    return [contents[row.id.hex()] for row in await hits(pool, wanted, reach, Limits(), now=NOW)]


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n", []),
        ("... !? 🙂", []),
        ("two words", ["two", "words"]),
        ("twice twice", ["twice"]),
        ("nul\0byte", ["nul", "byte"]),
        ("language:en include:spam word", ["word"]),
        ("domain:example.com", []),
        ("https://example.com/a nostr:npub1x", ["https://example.com/a", "nostr:npub1x"]),
        ("12:30 C: a::b error:timeout", ["12:30", "C:", "a::b", "error:timeout"]),
        (TOKEN, [TOKEN]),
    ],
)  # fmt: skip
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == [Word(word) for word in expected]


def test_a_search_is_bounded() -> None:
    assert len(words(" ".join(str(number) for number in range(1000)))) == WORDS_MAX
    assert len(words("x" * 5000)[0].text) < 2000


# -- what is found -----------------------------------------------------------------------------------------------------


async def test_all_words_come_before_some_whatever_their_age(pool: Pool) -> None:
    stock = [
        said("alpha beta gamma", 0),
        said("gamma and beta and much more before alpha", 1),
        said("alpha beta, repeated: alpha beta alpha beta", 500),
        said("beta only", 900),
        said("nothing of it", 999),
    ]
    await store(pool, stock)
    found = await find(pool, stock, "alpha beta gamma")
    assert found[:2] == ["alpha beta gamma", "gamma and beta and much more before alpha"]
    assert found[2:] == ["alpha beta, repeated: alpha beta alpha beta", "beta only"]


async def test_of_equals_the_newest_comes_first(pool: Pool) -> None:
    stock = [said(f"word {number}", number) for number in range(5)]
    await store(pool, stock)
    assert await find(pool, stock, "word") == [f"word {number}" for number in (4, 3, 2, 1, 0)]
    assert await find(pool, stock, "word", limit=2) == ["word 4", "word 3"]
    assert await find(pool, stock, "word", limit=0) == []


async def test_a_token_with_an_underscore_matches_as_a_whole(pool: Pool) -> None:
    """PostgreSQL's parser cuts at the underscore, and hex digits that look like a number once more."""
    tokens = [f"searchtoken_{random.Random(seed).getrandbits(128):032x}" for seed in range(30)] + [
        TOKEN,
        "searchtoken_0e12abcd0e12abcd0e12abcd0e12abcd",
        "searchtoken_12345678901234567890123456789012",
    ]
    stock = [said(f"before {token} after", number) for number, token in enumerate(tokens)]
    stock.append(said("searchtoken and 9dd4e461268c8034f5c8564e155c67a6 apart", 999))
    await store(pool, stock)
    for token in tokens:
        assert await find(pool, stock, token) == [f"before {token} after"]
    assert await find(pool, stock, f"({tokens[3]}).") == [f"before {tokens[3]} after"]


@pytest.mark.parametrize(
    "text", ["größe", "GRÖSSE größe", "ÜNÏ", "foo-bar", "don't", "a@example.com", "日本語", "v1.2"]
)
async def test_words_of_all_kinds(pool: Pool, text: str) -> None:
    stock = [said("Die Größe von ünï, FOO-BAR; don't write a@example.com 日本語 v1.2")]
    await store(pool, stock)
    assert await find(pool, stock, text) == [stock[0].event.content]


@pytest.mark.parametrize("text", ["!!!", "<b>", "https://", "' OR 1=1 --", "a & | ! b", "x:*", "\\", "%", "( ("])
async def test_no_text_is_an_error(pool: Pool, text: str) -> None:
    stock = [said("hello <b> world")]
    await store(pool, stock)
    assert await find(pool, stock, text) == []


async def test_what_no_search_finds(pool: Pool) -> None:
    """Sealed messages, what the relay itself wrote, what was deleted, what has expired."""
    kinds = (1059, 40099, 44100, 44101, 48101, 48102, 48103)
    stock = [said(f"secret {kind}", kind=kind) for kind in kinds]
    stock.append(said("secret gone", 1))
    stock.append(said("secret over", 2, tags=[["h", CHANNELS[0]], ["expiration", str(NOW)]]))
    stock.append(said("secret for now", 3, tags=[["h", CHANNELS[0]], ["expiration", str(NOW + 1)]]))
    await store(pool, [*stock[: len(kinds)], Filed(stock[-3].event, CHANNELS[0], deleted=True), *stock[-2:]])
    assert await find(pool, stock, "secret") == ["secret for now"]


async def test_who_may_read_what(pool: Pool) -> None:
    stock = [said(f"word {name}", channel=channel) for name, channel in zip("abg", (*CHANNELS[:2], None), strict=True)]
    await store(pool, stock)
    only_a = frozenset({CHANNELS[0]})
    assert set(await find(pool, stock, "word", Reach(only_a))) == {"word a", "word g"}
    assert await find(pool, stock, "word", Reach(only_a, global_events=False)) == ["word a"]
    assert await find(pool, stock, "word", Reach(frozenset())) == ["word g"]
    assert await find(pool, stock, "word", Reach(frozenset(), global_events=False)) == []
    for values in ({CHANNELS[0]}, {CHANNELS[0], CHANNELS[1]}, {CHANNELS[0], "junk"}):
        assert await find(pool, stock, "word", Reach(only_a), tags={"h": frozenset(values)}) == ["word a"]
    for values in ({CHANNELS[1]}, {"junk"}, {CHANNELS[0].upper()}):
        assert await find(pool, stock, "word", Reach(only_a), tags={"h": frozenset(values)}) == []


async def test_h_is_decided_to_the_byte(pool: Pool) -> None:
    stock = [
        said(f"word {tag}", number, tags=[["h", tag]]) for number, tag in enumerate((CHANNELS[0], CHANNELS[0].upper()))
    ]
    await store(pool, stock)
    for each in stock:
        [[_, value]] = each.event.tags
        assert await find(pool, stock, "word", tags={"h": frozenset({value})}) == [f"word {value}"]


async def test_the_other_conditions_hold(pool: Pool) -> None:
    stock = [
        said("word one", 1, kind=9, tags=[["h", CHANNELS[0]], ["e", "x"]]),
        said("word two", 2, kind=45001, pubkey=AUTHORS[1]),
        said("word three", 3, kind=9),
    ]
    await store(pool, stock)

    async def found(**conditions: Any) -> list[str]:
        return await find(pool, stock, "word", **conditions)

    assert await found(kinds=frozenset({45001})) == ["word two"]
    assert await found(kinds=frozenset()) == []
    assert await found(authors=frozenset({AUTHORS[1]})) == ["word two"]
    assert await found(ids=frozenset({stock[0].event.id})) == ["word one"]
    assert await found(tags={"e": frozenset({"x"})}) == ["word one"]
    assert await found(since=START + 2) == ["word three", "word two"]
    assert await found(until=START + 2) == ["word two", "word one"]


@pytest.mark.parametrize("seed", range(3))
async def test_any_words_in_any_texts(pool: Pool, seed: int) -> None:
    """Against looking at every event: those with all words, then those with some, nothing else."""
    rng = random.Random(seed)
    vocabulary = ["ant", "bee", "cat", "dog", "a_b", "a_c", "e1", "Fox"]
    stock = [said(" ".join(rng.choices(vocabulary, k=rng.randrange(1, 5))), number) for number in range(150)]
    await store(pool, stock)
    for _ in range(40):
        searched = rng.sample(vocabulary, rng.randrange(1, 4))
        every, some = [], []
        for each in stock:
            present = [has(each.event.content, word) for word in searched]
            if all(present):
                every.append(each.event.content)
            elif any(present):
                some.append(each.event.content)
        found = await find(pool, stock, " ".join(searched))
        assert sorted(found[: len(every)]) == sorted(every), searched
        assert sorted(found[len(every) :]) == sorted(some), searched


def has(content: str, word: str) -> bool:
    """Whether the pieces of the word follow each other in the text."""
    pieces, text = (re.split(r"[ _]", each.lower()) for each in (word, content))
    return any(text[start : start + len(pieces)] == pieces for start in range(len(text)))


# -- cost --------------------------------------------------------------------------------------------------------------


async def test_never_more_than_the_contract_allows(pool: Pool) -> None:
    stock = [said(f"word {number}", number) for number in range(HITS_MAX + 20)]
    await store(pool, stock)
    found = await find(pool, stock, "word", limit=10_000)
    assert len(found) == HITS_MAX
    assert found[0] == f"word {HITS_MAX + 19}"


FILL = """
INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, signed_json)
SELECT sha256(n::text::bytea), sha256(''), n, 9, '[]', 'common' || CASE WHEN n % 5000 = 0 THEN ' rare' ELSE '' END,
       decode(repeat('00', 64), 'hex'), NULL, '{}'
FROM generate_series(1, 20000) AS n"""


async def test_the_plan_follows_the_words(pool: Pool) -> None:
    """The commonest word is found by walking back in time, a rare one through the index of words. Only a plan made for
    the words knows; so no search may leave the connection with another, however often it was asked."""
    statements: list[str] = []
    async with pool.acquire() as con:
        await con.execute(FILL)
        await con.execute("VACUUM ANALYZE events")
        con.on_statement = statements.append
    for _ in range(8):
        assert len(await hits(pool, Filter(search="common"), EVERYTHING, Limits(), now=NOW)) == HITS_MAX
        assert len(await hits(pool, Filter(search="rare"), EVERYTHING, Limits(), now=NOW)) == 4
    statement = next(each for each in statements if "ts_rank" in each)
    async with pool.acquire() as con, con.transaction(readonly=True):
        await con.execute(PLANNING)
        for word, index in (("common", "events_newest"), ("rare", "events_search")):
            arguments = (sorted(CHANNELS), NOW, word, 500)
            rows = await con.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}", *arguments)
            plan = "\n".join(row[0] for row in rows)
            assert index in plan, plan
            assert "Seq Scan on events" not in plan, plan
    assert await pool.fetchval("SHOW plan_cache_mode") == "auto"
