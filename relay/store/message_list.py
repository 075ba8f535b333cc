"""The messages of a channel, page by page, each with its thread in numbers and its reactions.

One statement whatever the length of the page, the access check included: a page is a walk down the index of the
channel (or of a rare kind: then the server has to know which, see `PLANNING`), and everything about a row is looked up
by its key. Its pieces are shared with the list of a thread.

What a page shows: no answers within threads, unless they were sent to the channel as well. Every other kind that is
filed under the channel is there, state, edits and system messages too, unless `kinds` says which: clients of the
original filter themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import trio

from relay.asyncpg_trio import Pool
from relay.asyncpg_trio.errors import StatementTimeout
from relay.nostr.kinds import P_GATED
from relay.store.places import PAIR_ROWS, Place, newer, older
from relay.store.reach import READABLE_CHANNEL

PARTICIPANTS_MAX: Final = 10  # the original's
RECENT_REPLIES: Final = 100
"""Participants are looked for among so many newest answers: a talk of two people may have thousands."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A thread in numbers. `last_reply_at` is by the relay's clock, in seconds; `participants` are the keys that signed
    the newest answers, the latest first."""

    reply_count: int
    descendant_count: int
    last_reply_at: int | None
    participants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedMessage:
    """One row. `summary` is there where the message is part of a thread; `reactions` are (emoji, number), by emoji.
    `signed_json` is empty where the page has no room for it any more, see `with_text`."""

    event_id: str
    created_at: int
    signed_json: bytes
    summary: Summary | None
    reactions: tuple[tuple[str, int], ...]


# Events whose time is over and that nobody has swept out yet: hardly ever one. Asked once a statement, and not for
# every reaction whether its event still counts. No word on their kind: the index of kinds would look at all reactions.
OVER: Final = """
SELECT x.id FROM events x WHERE x.expires_at IS NOT NULL AND x.expires_at <= {now}::bigint AND x.deleted_at IS NULL"""

# Of a row `p` with an id, beside a CTE `over`. The bytes decide the order of emoji: the same for every database,
# whatever its collation.
REACTED: Final = """
LEFT JOIN LATERAL (
    SELECT array_agg(g.emoji ORDER BY g.emoji COLLATE "C") AS emojis,
           array_agg(g.number ORDER BY g.emoji COLLATE "C") AS numbers
    FROM (SELECT r.emoji, count(*) AS number FROM reactions r
          WHERE r.event_id = p.id AND r.removed_at IS NULL
            AND (r.reaction_event_id IN (SELECT id FROM over)) IS NOT TRUE
          GROUP BY r.emoji) g
) reacted ON true"""

# Of the same row with its counts: where they are 0 nothing is looked up. A root is named by answers of all levels, an
# answer that was sent to the channel as well only by those that answer it.
ANSWERED: Final = f"""
LEFT JOIN LATERAL (
    SELECT array_agg(encode(k.pubkey, 'hex') ORDER BY k.latest DESC, k.pubkey) AS pubkeys
    FROM (SELECT n.pubkey, max(n.created_at) AS latest
          FROM ((SELECT e.pubkey, t.created_at FROM thread_metadata t JOIN events e ON e.id = t.event_id
                 WHERE t.root_event_id = p.id AND p.descendant_count > 0
                   AND e.deleted_at IS NULL AND (e.expires_at <= {{now}}::bigint) IS NOT TRUE
                 ORDER BY t.created_at DESC, t.event_id DESC LIMIT {RECENT_REPLIES})
                UNION ALL
                (SELECT e.pubkey, t.created_at FROM thread_metadata t JOIN events e ON e.id = t.event_id
                 WHERE t.parent_event_id = p.id AND p.descendant_count = 0 AND p.reply_count > 0
                   AND e.deleted_at IS NULL AND (e.expires_at <= {{now}}::bigint) IS NOT TRUE
                 ORDER BY t.created_at DESC, t.event_id DESC LIMIT {RECENT_REPLIES})) n
          GROUP BY n.pubkey ORDER BY latest DESC, n.pubkey LIMIT {PARTICIPANTS_MAX}) k
) answered ON true"""

PART_COLUMNS: Final = """
p.threaded, p.reply_count, p.descendant_count, p.last_reply_at, answered.pubkeys, reacted.emojis, reacted.numbers"""

# Of rows `p` with a window `w` in their order: what comes when the page is full comes without its text. Lengths are
# known without reading what is stored out of line.
TEXT_BYTES_MAX: Final = 8 << 20
"""Of a page: with 500 of the largest events it would be 130 MB, and half a gigabyte on its way through the process."""
TEXT_ROWS_MIN: Final = 8
"""They come whatever their size, so that every page has one row and what `places.cut` has to see behind it."""
TEXT: Final = f"""
CASE WHEN row_number() OVER w <= {TEXT_ROWS_MIN} OR sum(octet_length(p.signed_json)) OVER w <= {TEXT_BYTES_MAX}
     THEN p.signed_json END AS signed_json"""

THREAD_COLUMNS: Final = """
t.event_id IS NOT NULL AS threaded, t.reply_count, t.descendant_count,
floor(extract(epoch FROM t.last_reply_at))::bigint AS last_reply_at"""

# Both bounds are always there: with "IS NULL OR" in front they would be no range of the index. Kinds that are meant
# for one reader alone are filed under no channel; should one ever be, it is not shown here. Whether a row is an answer
# is asked row by row: as a join, the planner expects hardly any row to be left, and reads and sorts the whole channel
# (60 000 messages: 80 ms instead of 4).
_PAGE = f"""
WITH readable AS MATERIALIZED (SELECT id FROM ({READABLE_CHANNEL.format(channel="$1::text::uuid", key="$2")}) c),
over AS MATERIALIZED ({OVER.format(now="$3")}),
page AS MATERIALIZED (
    SELECT e.id, e.created_at, e.signed_json
    FROM events e
    WHERE e.channel_id = $1::text::uuid AND EXISTS (SELECT 1 FROM readable)
      AND e.deleted_at IS NULL AND (e.expires_at <= $3::bigint) IS NOT TRUE
      AND e.kind NOT IN ({", ".join(map(str, sorted(P_GATED)))}) {{kinds}}
      AND coalesce((SELECT t.depth = 0 OR (t.depth = 1 AND t.broadcast) FROM thread_metadata t
                    WHERE t.event_id = e.id), true)
      AND e.created_at <= $5::bigint AND (e.created_at < $5::bigint OR e.id > $6::bytea)
      AND e.created_at >= $7::bigint AND (e.created_at > $7::bigint OR e.id > $8::bytea)
    ORDER BY e.created_at {{order}}, e.id LIMIT $4
), p AS MATERIALIZED (
    SELECT f.*, {THREAD_COLUMNS} FROM page f LEFT JOIN thread_metadata t ON t.event_id = f.id
)
SELECT EXISTS (SELECT 1 FROM readable) AS readable, encode(p.id, 'hex') AS id, p.created_at, {TEXT},
       {PART_COLUMNS}
FROM (VALUES (1)) always LEFT JOIN p ON true {REACTED} {ANSWERED.format(now="$3")}
WINDOW w AS (ORDER BY p.created_at {{order}}, p.id)
ORDER BY p.created_at {{order}}, p.id"""

_NEWEST = _PAGE.format(order="DESC", kinds="")
_OLDEST = _PAGE.format(order="ASC", kinds="")
_NEWEST_OF_KINDS = _PAGE.format(order="DESC", kinds="AND e.kind = ANY ($9::int[])")
_OLDEST_OF_KINDS = _PAGE.format(order="ASC", kinds="AND e.kind = ANY ($9::int[])")


# One plan for every list of kinds walks the whole channel to find that it has none of a kind: 60 000 messages in 57 ms,
# and planned for the kind that was asked for in 1.
PLANNING: Final = "SET LOCAL plan_cache_mode = force_custom_plan"


async def page(
    db: Pool,
    channel_id: str,
    pubkey: str,
    *,
    now: int,
    limit: int,
    statement_seconds: float,
    before: Place | None = None,
    since: Place | None = None,
    kinds: Sequence[int] | None = None,
) -> list[ListedMessage] | None:
    """The rows for a page of `limit`, and up to `PAIR_ROWS` more for `places.cut`; None where the key may not read the
    channel, or there is none.

    Newest first; oldest first where only `since` is given. `now` in seconds: what has expired is left out.

    Raises: what the store raises; StatementTimeout after `statement_seconds` also where a transaction is needed.
    """
    oldest_first = since is not None and before is None
    arguments: list[Any] = [
        channel_id,
        bytes.fromhex(pubkey),
        now,
        limit + PAIR_ROWS if limit else 0,
        *older(before),
        *newer(since),
    ]
    if kinds is None:
        rows: Sequence[Any] = await db.fetch(_OLDEST if oldest_first else _NEWEST, *arguments)
    else:
        statement = _OLDEST_OF_KINDS if oldest_first else _NEWEST_OF_KINDS
        rows = await _planned(db, statement_seconds, statement, *arguments, list(kinds))
    if not rows[0]["readable"]:
        return None
    return [
        ListedMessage(row["id"], row["created_at"], row["signed_json"] or b"", summary_of(row), reactions_of(row))
        for row in rows
        if row["id"] is not None
    ]


async def _planned(db: Pool, seconds: float, statement: str, *arguments: Any) -> Sequence[Any]:
    """The rows by a plan that was made for these arguments."""
    with trio.move_on_after(seconds):
        async with db.transaction(readonly=True) as con:
            await con.execute(PLANNING)
            return await con.fetch(statement, *arguments)
    raise StatementTimeout(f"no answer within {seconds} s")


class _Signed(Protocol):
    @property
    def signed_json(self) -> bytes: ...


_Row = TypeVar("_Row", bound=_Signed)


def with_text(rows: Sequence[_Row], limit: int, further: int) -> tuple[Sequence[_Row], int]:
    """The rows that came with their text, and the size of the page that they make: as if the client had asked for so
    few. `rows` are those for a page of `limit`, and up to `further` more."""
    end = next((number for number, row in enumerate(rows) if not row.signed_json), None)
    return (rows, limit) if end is None else (rows[:end], min(limit, end - further))


def summary_of(row: Any) -> Summary | None:
    """From the columns of `PART_COLUMNS`."""
    if not row["threaded"]:
        return None
    return Summary(row["reply_count"], row["descendant_count"], row["last_reply_at"], tuple(row["pubkeys"] or ()))


def reactions_of(row: Any) -> tuple[tuple[str, int], ...]:
    """From the same."""
    return tuple(zip(row["emojis"] or (), row["numbers"] or (), strict=True))
