"""NIP-50: the stored events that contain words, best first.

In: a filter with `search`, what its caller may read, the clock. Out: at most `HITS_MAX` rows. Words are those of
PostgreSQL's parser over `content`, in lower case and unstemmed (the generated column `events.search`, which is empty
for sealed and for relay-made events). A row is found as soon as it is committed, and no longer once it is deleted.

Theory
------
A word of the query is what stands between blanks. The parser may cut it further (`searchtoken_9d` are two words to it),
so each becomes a phrase of its own: its pieces must follow each other. Rows with all words come first whatever their
age; only where they are too few, rows with some of the words fill up.

The rank of a row needs its text, and the commonest word stands in every row. So of each of the two sets only the newest
`WINDOW_ROWS` are ranked. PostgreSQL must know the words to choose between walking back in time (common words) and the
index of words (rare ones): the plan has to be a custom one. Over 200 000 rows the commonest word took 0.4 ms so, and
207 ms with a generic plan; a rare one 0.2 ms either way. Dearest is a common word that nobody has used for long: the
walk back goes through everything since (100 ms here). The time of a statement bounds it.

Not done here: parts of words. Languages without blanks between words are found by whole runs of characters only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import trio

from relay import metrics
from relay.asyncpg_trio import Connection
from relay.nostr.filter import Filter
from relay.query.conditions import Parameters, Reach, conditions, search_channels
from relay.query.replay import Database, Limits, Row

HITS_MAX: Final = 500
"""Of one filter, as in the original."""
WINDOW_ROWS: Final = 500

# Nobody types more; each word is another look into the index.
WORDS_MAX: Final = 32
TEXT_MAX: Final = 1024

# Compiling a plan takes longer than any of these should.
PLANNING: Final = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off"

# The `key:value` words that NIP-50 names; a relay leaves out what it does not do. Any other is text: `error:timeout`.
_EXTENSION: Final = re.compile(r"(include|domain|language|sentiment|nsfw):[^/:].*")

_HITS = """
SELECT w.id, w.signed_json, w.channel_id::text, w.created_at
FROM (SELECT e.id, e.signed_json, e.channel_id, e.created_at, ts_rank(e.search, {words}) AS rank
      FROM events e
      WHERE {conditions}
      ORDER BY e.created_at DESC, e.id
      LIMIT {window}) w
ORDER BY w.rank DESC, w.created_at DESC, w.id
LIMIT {limit}"""


def words(text: str) -> list[str]:
    """The words of a search, each once, without NIP-50's own `key:value` and what has neither letter nor digit."""
    found = dict.fromkeys(text[:TEXT_MAX].replace("\0", " ").split())
    usable = [word for word in found if any(map(str.isalnum, word)) and not _EXTENSION.fullmatch(word)]
    return usable[:WORDS_MAX]


def search_conditions(wanted: Filter, reach: Reach, now: int, parameters: Parameters) -> list[str] | None:
    """What COUNT counts of a filter with `search`: the rows with at least one of its words."""
    assert wanted.search is not None
    found = _conditions(wanted, reach, now, parameters)
    phrases = _phrases(words(wanted.search), parameters)
    return [*found, f"e.search @@ {_any(phrases)}"] if found is not None and phrases else None


async def hits(db: Database, wanted: Filter, reach: Reach, limits: Limits, *, now: int) -> list[Row]:
    """The rows that one filter finds, best first: all words before some, then by rank, then the newest.

    Raises:
        StoreError, or what the driver raises: the store could not be asked.
        trio.TooSlowError: it took longer than `Limits.statement_seconds`.
    """
    assert wanted.search is not None
    searched = words(wanted.search)
    limit = min(limits.rows_default if wanted.limit is None else wanted.limit, limits.rows_max, HITS_MAX)
    if not searched or limit == 0:
        return []
    began = time.perf_counter()
    with trio.fail_after(limits.statement_seconds):
        async with db.transaction(readonly=True) as con:
            await con.execute(PLANNING)
            found = await _hits(con, wanted, reach, now, searched, limit, every=True)
            if len(found) < limit and len(searched) > 1:
                found += await _hits(con, wanted, reach, now, searched, limit - len(found), every=False)
    metrics.SEARCH_SECONDS.observe(time.perf_counter() - began)
    return found


async def _hits(
    con: Connection, wanted: Filter, reach: Reach, now: int, searched: Sequence[str], limit: int, *, every: bool
) -> list[Row]:
    """Rows with all of the words, or (`every` false) those with some but not all."""
    parameters = Parameters()
    found = _conditions(wanted, reach, now, parameters)
    if found is None:
        return []
    phrases = _phrases(searched, parameters)
    ranked = _all(phrases) if every else _any(phrases)
    matched = ranked if every else f"({ranked} && !!{_all(phrases)})"
    statement = _HITS.format(
        words=ranked,
        conditions="\n        AND ".join([*found, f"e.search @@ {matched}"]),
        window=parameters.add(WINDOW_ROWS),
        limit=parameters.add(limit),
    )
    rows: Sequence[Any] = await con.fetch(statement, *parameters.values)
    return [Row(row[0], row[1], row[2], row[3]) for row in rows]


def _conditions(wanted: Filter, reach: Reach, now: int, parameters: Parameters) -> list[str] | None:
    return conditions(wanted, search_channels(wanted, reach), now, parameters, exact=True)


def _phrases(searched: Sequence[str], parameters: Parameters) -> list[str]:
    return [f"phraseto_tsquery('simple', {parameters.add(word)}::text)" for word in searched]


def _all(phrases: Sequence[str]) -> str:
    return f"({' && '.join(phrases)})"


def _any(phrases: Sequence[str]) -> str:
    return f"({' || '.join(phrases)})"
