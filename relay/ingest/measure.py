"""What the metrics say of ingest: each event is received once, and once stored or rejected.

Called by whoever decides the outcome: admission, the commit task, or `Ingest.perform` for everything else. An accepted
duplicate counts as stored, as in the original; an ephemeral event, which is not stored, does not.
"""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import Counter

from relay import metrics
from relay.errors import Refusal, RefusalClass
from relay.ingest.types import Admission, Outcome, Route
from relay.nostr.kinds import kind_label


@cache
def _counters(label: str) -> tuple[Counter, Counter]:
    """Received and stored, of one kind. Looking a label up costs three times what counting does."""
    return metrics.EVENTS_RECEIVED.labels(label), metrics.EVENTS_STORED.labels(label)


def received(kind: int) -> None:
    """An EVENT has come, whatever becomes of it."""
    _counters(kind_label(kind))[0].inc()


def rejected(refusal: Refusal) -> None:
    """The label has the original's four values."""
    kind = refusal.kind
    if kind in (RefusalClass.UNAVAILABLE, RefusalClass.LIMITED):
        kind = RefusalClass.ERROR
    metrics.EVENTS_REJECTED.labels(kind.reason).inc()


def ended(admission: Admission, outcome: Outcome) -> None:
    """An admitted event has its outcome."""
    if outcome.accepted and admission.route is not Route.EPHEMERAL:
        _counters(kind_label(admission.event.kind))[1].inc()
    if outcome.refusal is not None:
        rejected(outcome.refusal)
    else:
        metrics.EVENT_PROCESSING_SECONDS.observe(time.perf_counter() - admission.started)
