"""Users by key, by handle, and by a part of what they are called: order, odd texts, and the index behind the search."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import orjson
import pytest

from relay.asyncpg_trio import Connection, connect
from relay.store import user_lookups
from relay.store.migrate import up
from tests.support.postgres import PostgresServer

KEYS = [f"{n:02x}" * 32 for n in range(1, 60)]


async def add(con: Connection, pubkey: str, name: str | None = None, handle: str | None = None) -> None:
    await con.execute(
        "INSERT INTO users (pubkey, display_name, nip05_handle) VALUES ($1, $2, $3)",
        bytes.fromhex(pubkey),
        name,
        handle,
    )


async def found(con: Connection, text: str, limit: int = 50) -> list[str]:
    return [user.pubkey for user in await user_lookups.search(con, text, limit)]


async def test_by_key(con: Connection) -> None:
    await add(con, KEYS[0])
    await con.execute(
        "INSERT INTO users (pubkey, display_name, avatar_url, about, nip05_handle, agent_owner_pubkey) "
        "VALUES ($1, 'Ada', 'https://a.example/a.png', 'counts', 'ada@relay.example', $2)",
        bytes.fromhex(KEYS[1]),
        bytes.fromhex(KEYS[0]),
    )
    ada = user_lookups.User(KEYS[1], "Ada", "https://a.example/a.png", "counts", "ada@relay.example", KEYS[0])
    nobody_yet = user_lookups.User(KEYS[0], None, None, None, None, None)
    assert await user_lookups.get(con, KEYS[1]) == ada
    assert await user_lookups.get(con, KEYS[0]) == nobody_yet
    assert await user_lookups.get(con, KEYS[2]) is None
    many = await user_lookups.many(con, [KEYS[2], KEYS[1], KEYS[0]])
    assert sorted(many, key=lambda user: user.pubkey) == [nobody_yet, ada]
    assert await user_lookups.many(con, []) == []


async def test_by_handle(con: Connection) -> None:
    await add(con, KEYS[0], None, "ada@relay.example")
    assert await user_lookups.by_handle(con, "ADA@relay.Example") == KEYS[0]
    for other in ("ada@other.example", "ad@relay.example", "ada@relay.example ", "%@relay.example", "a" * 300, "\0"):
        assert await user_lookups.by_handle(con, other) is None


@pytest.mark.parametrize("text", ["ab", "abc"], ids=["read through", "by trigrams"])
async def test_ranks(con: Connection, text: str) -> None:
    """Exact, beginning, anywhere; of each the name, the handle, the key; then by name, handle or key."""
    rest = "c" * (64 - len(text))
    expected = [
        (KEYS[9], text.upper(), None),
        (KEYS[8], None, text),
        # The exact key has 64 digits: asked for below.
        (KEYS[7], f"{text} alpha", None),
        (KEYS[6], f"{text.title()} Beta", f"{text}.handle@x"),
        (KEYS[5], None, f"{text}@x"),
        (KEYS[4], "zoë", f"{text}.z@x"),
        (text + rest, None, None),
        (KEYS[3], f"a {text}", None),
        (KEYS[2], "m", f"m{text}@x"),
        # Where there is no name, the handle stands in; an empty name is none.
        (KEYS[1], "", f"n{text}@x"),
        (("d" * (64 - len(text))) + text, "o", None),
    ]
    for pubkey, name, handle in reversed(expected):
        await add(con, pubkey, name, handle)
    await add(con, KEYS[20], "somebody else", "else@x")
    assert await found(con, text) == [pubkey for pubkey, _, _ in expected]
    assert await found(con, text.upper()) == [pubkey for pubkey, _, _ in expected]
    assert await found(con, text, 3) == [pubkey for pubkey, _, _ in expected[:3]]
    assert await found(con, (text + rest).upper()) == [text + rest]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("%", "100%"),
        ("_", "under_score"),
        ("\\", "back\\slash"),
        ("a%c", "xa%cx"),
        ("ab_de", "ab_de"),
        ("abc\\%d", "abc\\%d"),
        ("'; --", "o'; -- x"),
        ("*", "*"),
        ("[a-z]{3}", "[a-z]{3}"),
        ("ä", "Ägäis"),
        ("зоя", "Зоя"),
        ("雷", "李雷"),
        ("李雷你好", "李雷你好吗"),
        ("🦊", "fox 🦊"),
        ("o w", "two words"),
        ("...", "wait..."),
    ],
)  # fmt: skip
async def test_every_character_stands_for_itself(con: Connection, text: str, name: str) -> None:
    await add(con, KEYS[0], name)
    for pubkey, other in zip(KEYS[1:], ("abc", "abcde", "abxde", "a-c", "somebody", "", None), strict=False):
        await add(con, pubkey, other)
    assert await found(con, text) == [KEYS[0]]


async def test_texts_that_nobody_can_have(con: Connection) -> None:
    await add(con, KEYS[0], "ab")
    for text in ("a\0b", "\0", "x" * 200, "g" * 64):
        assert await found(con, text) == []


_FILL = """
INSERT INTO users (pubkey, display_name, nip05_handle)
SELECT sha256(n::text::bytea), 'Person ' || md5(n::text), 'p' || n || '@relay.example'
FROM generate_series(1, 20000) n"""


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for inner in plan.get("Plans", ()) for node in nodes(inner)]


async def plan(con: Connection, text: str) -> set[str]:
    statements: list[str] = []

    class Explaining:
        async def fetch(self, statement: str, *arguments: object) -> list[Any]:
            found = await con.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
            statements.extend(
                node.get("Index Name", node["Node Type"]) for node in nodes(orjson.loads(found)[0]["Plan"])
            )
            return []

    await user_lookups.search(Explaining(), text, 8)  # type: ignore[arg-type]
    return set(statements)


@pytest.mark.parametrize("text", ["n 4f3a", "p777@", "deadbee", "zoë"])
async def test_three_letters_in_a_row_are_found_by_the_index(con: Connection, text: str) -> None:
    await con.execute(_FILL)
    await con.execute("VACUUM ANALYZE users")
    for _ in range(8):  # also when the plan has become one for any text
        found_by = await plan(con, text)
        assert "users_search" in found_by, found_by
        assert "Seq Scan" not in found_by


@pytest.mark.parametrize("why", ["not shipped", "may not create it", "in another schema"])
async def test_a_database_without_trigrams(postgres_server: PostgresServer, why: str) -> None:
    """Every migration goes through, there is no index, and the search finds the same."""
    if why == "not shipped" and int(postgres_server.psql("postgres", "SHOW server_version_num")) < 180_000:
        pytest.skip("only PostgreSQL 18 can be told where not to look for extensions")
    name = postgres_server.create_database()
    role = f"{name}_plain"
    postgres_server.psql(name, f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}")
    if why == "not shipped":
        postgres_server.psql(name, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
        postgres_server.psql(name, f"GRANT CREATE ON DATABASE {name} TO {role}")
    elif why == "in another schema":
        postgres_server.psql(name, "CREATE SCHEMA other; CREATE EXTENSION pg_trgm SCHEMA other")
    con = await connect(postgres_server.dsn(name).replace("relay@", f"{role}@"))
    try:
        await up(con)
        assert await con.fetchval("SELECT to_regclass('users_search')") is None
        await add(con, KEYS[0], "Ada Lovelace")
        await add(con, sha256(b"").hexdigest(), None, "e@x")
        assert await found(con, "lovel") == [KEYS[0]]
        assert await found(con, "e3b0c442") == [sha256(b"").hexdigest()]
    finally:
        con.terminate()
        postgres_server.drop_database(name)
        postgres_server.psql("postgres", f"DROP ROLE {role}")
