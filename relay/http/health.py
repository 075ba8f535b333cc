"""The two small apps on ports of their own: health for orchestrators, metrics for Prometheus.

Neither has CORS, authentication or limits; both listen on loopback unless told otherwise. The numbers that other parts
already count are read from their `statistics()` when somebody asks, and cost nothing in between.
"""

from __future__ import annotations

import platform
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Response
from quart_trio import QuartTrio

from relay import __version__, metrics
from relay.http.app import bare_app
from relay.http.readiness import answer as answer_readiness
from relay.http.refusals import json_response
from relay.http.services import Services

SERVICE: Final = "relay"


def create_health_app(parts: Services) -> QuartTrio:
    """`/_liveness`, `/_readiness`, `/_status`."""
    app = bare_app(__name__)

    @app.get("/_liveness")
    async def liveness() -> Response:
        return Response("ok", 200, content_type="text/plain; charset=utf-8")

    @app.get("/_readiness")
    async def readiness() -> Response:
        return await answer_readiness(parts)

    @app.get("/_status")
    async def status() -> Response:
        body = {"service": SERVICE, "version": __version__, "uptime_seconds": int(parts.uptime())}
        return json_response(body)

    return app


def create_metrics_app(parts: Services) -> QuartTrio:
    """`/metrics` in the Prometheus text format."""
    app = bare_app(__name__)
    metrics.BUILD_INFO.labels(__version__, platform.python_version()).set(1)

    @app.get("/metrics")
    async def read() -> Response:
        measure(parts)
        return Response(generate_latest(metrics.REGISTRY), 200, content_type=CONTENT_TYPE_LATEST)

    return app


def measure(parts: Services) -> None:
    """Copies what the parts count of themselves into the gauges."""
    for pool in (parts.pool, *parts.other_pools):
        numbers = pool.statistics()
        for state in ("idle", "in_use", "waiting"):
            metrics.POOL_CONNECTIONS.labels(numbers.name, state).set(getattr(numbers, state))
        metrics.POOL_ACQUIRE_TIMEOUTS.labels(numbers.name).set(numbers.acquire_timeouts_total)
        metrics.POOL_WAIT_SECONDS.labels(numbers.name).set(numbers.wait_seconds_total)
    caches = parts.directory.statistics()
    for name in ("channels", "memberships", "accessible"):
        metrics.CACHE_ENTRIES.labels(name).set(getattr(caches, name).entries)
    audit = parts.audit.statistics()
    metrics.AUDIT_QUEUE_ENTRIES.set(audit.queued)
    metrics.AUDIT_HEAD_SEQ.set(audit.head_seq)
    metrics.AUDIT_HELD_ENTRIES.set(audit.held)
    metrics.AUDIT_OUTBOX_AGE_SECONDS.set(audit.oldest_outbox_seconds)
    metrics.SUBSCRIPTIONS_ACTIVE.set(parts.hub.statistics().subscriptions)
