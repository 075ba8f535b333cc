"""Notes page by page, against a list in memory: nothing is skipped, repeated, or shown that should not be."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.asyncpg_trio import Connection, connect
from relay.store import notes
from relay.store.notes import Before, Note

ME, OTHER = "aa" * 32, "bb" * 32
NOW = 1_800_000_000
STOCK_MAX = 25
CHANNEL = "5a3e6c2e-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Filed:
    created_at: int
    author: str = ME
    kind: int = 1
    channel_id: str | None = None
    deleted: bool = False
    expires_at: int | None = None

    @property
    def shown(self) -> bool:
        ours = (self.author, self.kind, self.channel_id) == (ME, 1, None)
        return ours and not self.deleted and (self.expires_at is None or self.expires_at > NOW)


async def store(con: Connection, stock: list[Filed]) -> list[Note]:
    """Fills the table; returns what is to be seen of it, in its order."""
    await con.execute("DELETE FROM events")
    expected = []
    for place, each in enumerate(stock):
        event_id = sha256(f"{place}".encode()).digest()
        await con.execute(
            "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, channel_id, deleted_at, expires_at, "
            "signed_json) VALUES ($1, $2, $3, $4, '[]', $5, $6, $7, CASE WHEN $8 THEN now() END, $9, $10)",
            event_id,
            bytes.fromhex(each.author),
            each.created_at,
            each.kind,
            f"note {place}",
            bytes(64),
            each.channel_id,
            each.deleted,
            each.expires_at,
            orjson.dumps({"id": event_id.hex()}),
        )
        if each.shown:
            expected.append(Note(event_id.hex(), each.created_at, f"note {place}"))
    return sorted(expected, key=lambda note: (-note.created_at, note.event_id))


async def walk(con: Connection, limit: int, before: Before | None = None) -> list[Note]:
    """All pages in a row, each but the last one full."""
    whole: list[Note] = []
    more = True
    while more:
        page, more = await notes.page(con, ME, before=before, limit=limit, now=NOW)
        assert len(page) == limit or (len(page) < limit and not more)
        whole += page
        assert len(whole) <= STOCK_MAX, "the same notes come again and again"
        before = Before(page[-1].created_at, page[-1].event_id) if page else None
    return whole


STOCK = st.lists(
    st.builds(
        Filed,
        st.integers(0, 3).map(lambda n: NOW - n),
        author=st.sampled_from([ME, ME, ME, ME, OTHER]),
        kind=st.sampled_from([1, 1, 1, 1, 9]),
        channel_id=st.sampled_from([None, None, None, None, CHANNEL]),
        deleted=st.sampled_from([False, False, False, False, True]),
        expires_at=st.sampled_from([None, None, None, NOW, NOW + 1]),
    ),
    max_size=STOCK_MAX,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stock=STOCK, limit=st.integers(1, 8), second=st.integers(-1, 5).map(lambda n: NOW - n))
async def test_pages_are_the_list(migrated_dsn: str, stock: list[Filed], limit: int, second: int) -> None:
    con = await connect(migrated_dsn)  # every example runs in a loop of its own
    try:
        expected = await store(con, stock)
        assert await walk(con, limit) == expected
        assert await walk(con, limit, Before(second)) == [note for note in expected if note.created_at < second]
        # Any id is a place, also one that no note has.
        behind = "7f" * 32
        assert await walk(con, limit, Before(second, behind)) == [
            note for note in expected if (-note.created_at, note.event_id) > (-second, behind)
        ]
    finally:
        con.terminate()


async def test_the_ends_of_the_calendar(con: Connection) -> None:
    """NIP-01 allows times that no calendar has."""
    stock = [Filed(2**63 - 1), Filed(NOW), Filed(-(2**63))]
    assert len(await store(con, stock)) == 3
    assert [note.created_at for note in await walk(con, 1)] == [2**63 - 1, NOW, -(2**63)]


async def test_the_newest_contact_list_is_taken(con: Connection) -> None:
    assert await notes.contact_list(con, ME, now=NOW) is None
    await store(
        con,
        [
            Filed(NOW - 5, kind=3),
            Filed(NOW - 4, kind=3),
            Filed(NOW - 3, kind=3, deleted=True),
            Filed(NOW - 2, kind=3, expires_at=NOW),
            Filed(NOW - 1, kind=3, channel_id=CHANNEL),
            Filed(NOW, kind=3, author=OTHER),
        ],
    )
    found = await notes.contact_list(con, ME, now=NOW)
    assert found is not None
    assert orjson.loads(found)["id"] == sha256(b"1").hexdigest()


async def test_somebody_quiet_is_found_without_reading_the_others(con: Connection) -> None:
    """20 000 notes of one author stand in front of those of another; the page must not walk through them."""
    await con.execute(
        "INSERT INTO events (id, pubkey, created_at, kind, tags, content, sig, signed_json) "
        "SELECT sha256(n::text::bytea), CASE WHEN n <= 20 THEN $1 ELSE sha256((n % 50)::text::bytea) END, "
        "$2::bigint + n, 1, '[]', '', decode(repeat('00', 64), 'hex'), '' FROM generate_series(1, 20000) n",
        bytes.fromhex(ME),
        NOW,
    )
    await con.execute("ANALYZE events")
    text = await con.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {notes._PAGE}", bytes.fromhex(ME), NOW, 2**63 - 1, b"", 101
    )
    plan = orjson.loads(text)[0]["Plan"]
    while "Plans" in plan:
        plan = plan["Plans"][0]
    assert (plan["Index Name"], plan["Actual Rows"]) == ("events_author", 20)
    assert plan.get("Rows Removed by Filter", 0) == 0
