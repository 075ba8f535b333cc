"""The answer to "may traffic be sent here?", the same on the relay's port and on the health port."""

from __future__ import annotations

from typing import Final

import structlog
import trio
from quart import Response

from relay.http.refusals import json_response
from relay.http.services import Readiness, Services
from relay.store.failures import STORE_FAILURES

PROBE_SECONDS: Final = 2  # the original's; shorter than any load balancer's patience
# Requests that were turned away without a connection this lately mean: send traffic elsewhere for now. Without traffic
# none are, so the relay is ready again by itself.
STARVED_SECONDS: Final = 5

log = structlog.get_logger(__name__)


async def answer(parts: Services) -> Response:
    """200 ready; 503 not_ready with what is missing; 503 shutting_down.

    `pool` is false while requests could lately not get a connection. `redis` is always true: none is configured, and
    dashboards made for the original look for the key.
    """
    if parts.shutting_down():
        return json_response({"status": "shutting_down"}, 503)
    found = Readiness(postgres=False, audit=False)
    with trio.move_on_after(PROBE_SECONDS):
        try:
            found = await parts.readiness()
        except STORE_FAILURES as error:
            log.warning("the readiness probe failed", error=repr(error))
    # The probe has a connection of its own: a database in good health says nothing about a pool that is all in use.
    pool = parts.pool.statistics().starved_seconds_ago > STARVED_SECONDS
    if found.postgres and found.audit and pool:
        return json_response({"status": "ready"})
    body = {"status": "not_ready", "postgres": found.postgres, "redis": True, "audit": found.audit, "pool": pool}
    return json_response(body, 503)
