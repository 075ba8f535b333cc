"""How long a request waits to hear what became of its write.

A write happens in a task of the root nursery, which asks for the outcome of an unanswered COMMIT for as long as it
takes: until the database is back. Its client need not stand there all that time. It is told that nobody knows; an event
that is sent again is then stored once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from relay.http.auth import services
from relay.http.refusals import ApiError, from_refusal
from relay.ingest.effects import Apply
from relay.store.outcome import PATIENCE_SECONDS

# Beyond what ingest itself takes to give up on a database that does not answer.
_SPARE_SECONDS: Final = 5.0
UNDECIDED_TEXT: Final = "the database did not say in time whether this was done"


@contextmanager
def answered_in_time() -> Iterator[None]:
    """Around the waiting for a write. Raises ApiError (503)."""
    with trio.move_on_after(PATIENCE_SECONDS + services().settings.statement_seconds + _SPARE_SECONDS) as scope:
        yield
    if scope.cancelled_caught:
        raise ApiError(503, "undecided", UNDECIDED_TEXT)


async def transact(apply: Apply, actor: str) -> None:
    """A write that is no event, and its audit entry: see `Ingest.transact`. Raises ApiError for every no."""
    with answered_in_time():
        outcome = await services().ingest.transact(apply, actor=actor)
    if outcome.refusal is not None:
        raise from_refusal(outcome.refusal)
