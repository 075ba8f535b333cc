"""NIP-45: how many stored events match, exactly.

In: filters, each with what its caller may read of it, and the clock. Out: a number. Several filters are alternatives,
so an event that meets two of them counts once. `limit` says how many to send, so it does not matter here.

Theory. Every condition is decided in SQL, also the one on `#h`, which a replay leaves to Python. Ids, not rows, are
joined: UNION makes each once, and each filter keeps the index that suits it, where a single OR would read the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import trio

from relay import metrics
from relay.nostr.filter import Filter
from relay.query.conditions import Parameters, Reach, conditions
from relay.query.replay import Database
from relay.query.search import PLANNING, search_conditions


def statement(filters: Iterable[tuple[Filter, Reach]], now: int) -> tuple[str, Parameters] | None:
    """The statement that counts, and its arguments; None where nothing that the caller may read can match."""
    parameters = Parameters()
    wheres = []
    for wanted, reach in filters:
        # What a filter that cannot match has added goes again: of an unused argument PostgreSQL cannot tell the type.
        kept = len(parameters.values)
        if wanted.search is None:
            found = conditions(wanted, reach, now, parameters, exact=True)
        else:
            found = search_conditions(wanted, reach, now, parameters)
        if found is None:
            del parameters.values[kept:]
        else:
            wheres.append("\n  AND ".join(found))
    if not wheres:
        return None
    if len(wheres) == 1:
        return f"SELECT count(*) FROM events e\nWHERE {wheres[0]}", parameters
    alternatives = "\nUNION\n".join(f"SELECT e.id FROM events e\nWHERE {where}" for where in wheres)
    return f"SELECT count(*) FROM ({alternatives}) found", parameters


async def count(
    db: Database, filters: Iterable[tuple[Filter, Reach]], *, now: int, statement_seconds: float
) -> int:  # fmt: skip
    """How many stored events meet at least one of the filters; what was deleted or has expired at `now` is not counted.

    Raises:
        StoreError, or what the driver raises: the store could not be asked.
        trio.TooSlowError: it took longer than `statement_seconds`.
    """
    asked = statement(filters, now)
    if asked is None:
        await trio.lowlevel.checkpoint()
        return 0
    text, parameters = asked
    began = time.perf_counter()
    with trio.fail_after(statement_seconds):
        async with db.transaction(readonly=True) as con:
            # Which index is best depends on the values: see `search`.
            await con.execute(PLANNING)
            number: int = await con.fetchval(text, *parameters.values)
    metrics.COUNT_SECONDS.observe(time.perf_counter() - began)
    return number
