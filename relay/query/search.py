"""NIP-50 and `GET /api/search`: the stored events that contain words, best first.

In: a filter with `search`, what its caller may read, the clock. Out: at most `HITS_MAX` rows of one statement. Words
are those of PostgreSQL's parser over `content`, in lower case and unstemmed (the generated column `events.search`,
which is empty for sealed and for relay-made events), and for scripts without blanks whatever a message contains
(`words`). A row is found as soon as it is committed, and no longer once it is deleted.

Theory
------
A word of the query is what stands between blanks. The parser may cut it further (`searchtoken_9d` are two words to it),
so each becomes a phrase of its own: its pieces must follow each other. The last word may be the beginning of one, as
people search while they type; who meant it whole ranks above. Rows with all words come first whatever their age; only
where they are too few, rows with some of the words fill up: the second half of the statement does not run otherwise.

The rank of a row needs its text, and the commonest word stands in every row. So of each of the two sets only the newest
`WINDOW_ROWS` are ranked. PostgreSQL must know the words to choose between walking back in time (common words) and the
index of words (rare ones): the plan has to be a custom one. Over 200 000 rows of 500 channels either takes 1 to 2 ms
so, and the commonest word 207 ms with a generic plan. Dearest is a common word that nobody has used for long: the walk
back goes through everything since (100 ms here). The time of a statement bounds it.

The channels that may be read are an argument and not a part of the statement: with their ids before it, the planner
knows a caller of one quiet channel from one who reads everything (list 2.1 ms, common table expression 3.3). So whoever
sends the rows asks once more, just before, whether they may still be read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from relay import metrics
from relay.nostr.filter import Filter
from relay.query.conditions import Parameters, Reach, conditions, search_channels
from relay.query.replay import Database, Limits, Row
from relay.query.terms import Terms
from relay.query.words import words

HITS_MAX: Final = 500
"""Of one filter, as in the original."""
WINDOW_ROWS: Final = 500

# Compiling a plan takes longer than any of these should.
PLANNING: Final = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off"
# Nor are they worth waking further processes of the server: it takes longer than most of them. And what was said lately
# is in memory: with a page's usual price, a word that nobody ever used is looked for by walking back for ever.
_PAGES: Final = "SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL random_page_cost = 1.1"

_RANKED = """
    SELECT w.*, {place} AS place
    FROM (SELECT e.id, e.signed_json, e.channel_id, e.created_at, {rank} AS rank
          FROM events e
          WHERE {conditions}
          ORDER BY e.created_at DESC, e.id
          LIMIT {window}) w
    ORDER BY w.rank DESC, w.created_at DESC, w.id
    LIMIT {limit}"""

_ONE = "SELECT * FROM ({every}\n) every"

# The count depends on no row, so it is asked first and once: what need not be found is not looked for.
_BOTH = """SELECT * FROM every UNION ALL SELECT * FROM ({some}
) remainder"""
_ENOUGH = "(SELECT count(*) FROM every) < {limit}"

_HITS = """
{before}SELECT f.id, f.signed_json, f.channel_id::text, f.created_at, f.rank::float8,
       (SELECT c.name FROM channels c WHERE c.id = f.channel_id)
FROM ({found}) f
ORDER BY f.place, f.rank DESC, f.created_at DESC, f.id
LIMIT {limit}"""


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found: how well it fits, and the name of its channel (None for a global event)."""

    row: Row
    score: float
    channel_name: str | None


async def hits(db: Database, wanted: Filter, reach: Reach, limits: Limits, *, now: int) -> list[Row]:
    """The rows that one filter finds, best first: all words before some, then by rank, then the newest.

    Raises:
        StoreError, or what the driver raises: the store could not be asked.
        trio.TooSlowError: it took longer than `Limits.statement_seconds`.
    """
    return [hit.row for hit in await scored(db, wanted, reach, limits, now=now)]


async def scored(
    db: Database, wanted: Filter, reach: Reach, limits: Limits, *, now: int, newest: bool = False
) -> list[Hit]:
    """The same with scores and channel names. `newest`: whatever its words, the newest that a search could find."""
    assert wanted.search is not None
    limit = min(limits.rows_default if wanted.limit is None else wanted.limit, limits.rows_max, HITS_MAX)
    asked = _statement(wanted, reach, now, limit, newest=newest) if limit else None
    if asked is None:
        await trio.lowlevel.checkpoint()
        return []
    began = time.perf_counter()
    with trio.fail_after(limits.statement_seconds):
        async with db.transaction(readonly=True) as con:
            await con.execute(f"{PLANNING}; {_PAGES}")
            rows: Sequence[Any] = await con.fetch(asked[0], *asked[1].values)
    metrics.SEARCH_SECONDS.observe(time.perf_counter() - began)
    return [Hit(Row(row[0], row[1], row[2], row[3]), row[4], row[5]) for row in rows]


def search_conditions(wanted: Filter, reach: Reach, now: int, parameters: Parameters) -> list[str] | None:
    """What COUNT counts of a filter with `search`: the rows with at least one of its words."""
    assert wanted.search is not None
    found = _conditions(wanted, reach, now, parameters)
    searched = words(wanted.search)
    return [*found, Terms(searched, parameters).any] if found is not None and searched else None


def _conditions(wanted: Filter, reach: Reach, now: int, parameters: Parameters) -> list[str] | None:
    return conditions(wanted, search_channels(wanted, reach), now, parameters, exact=True)


def _statement(
    wanted: Filter, reach: Reach, now: int, limit: int, *, newest: bool
) -> tuple[str, Parameters] | None:  # fmt: skip
    """The statement and its arguments; None where nothing can be found."""
    parameters = Parameters()
    searched = [] if newest else words(wanted.search or "")
    found = _conditions(wanted, reach, now, parameters)
    if found is None or not (searched or newest):
        return None
    terms = Terms(searched, parameters)
    rows = parameters.add(limit)

    def ranked(place: int, rank: str, window: str, *more: str) -> str:
        condition = "\n            AND ".join([*more, *found])
        return _RANKED.format(place=place, rank=rank, conditions=condition, window=window, limit=rows)

    if newest:
        every = ranked(0, "0", rows, "e.search IS NOT NULL")
        return _HITS.format(before="", found=_ONE.format(every=every), limit=rows), parameters
    # Rows that fit alike need no ranking: the newest are the best.
    every = ranked(0, terms.rank_of_all, str(WINDOW_ROWS) if terms.ranks else rows, terms.all)
    if len(searched) == 1:
        return _HITS.format(before="", found=_ONE.format(every=every), limit=rows), parameters
    some = ranked(1, terms.rank_of_some, str(WINDOW_ROWS), _ENOUGH.format(limit=rows), terms.some)
    before = f"WITH every AS MATERIALIZED ({every}\n)\n"
    return _HITS.format(before=before, found=_BOTH.format(some=some), limit=rows), parameters
