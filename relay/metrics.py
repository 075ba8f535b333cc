"""Every metric of the relay, by name, in one place.

Names and buckets that the original has are kept, so that dashboards carry over; what is ours follows the Prometheus
conventions under the same prefix. Values that another object already counts (queues, pools, tasks) are set from its
`statistics()` when `/metrics` is read, by `relay/http/health.py`, and cost nothing in between.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)

SECONDS_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
FANOUT_BUCKETS = (0, 1, 5, 10, 25, 50, 100, 500, 1000)
HTTP_MS_BUCKETS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500)


def _counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
    return Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)


# -- the original's ---------------------------------------------------------------------------------------------------
HTTP_REQUESTS = _counter("http_requests_total", "HTTP requests by route pattern", ("code", "caller", "action"))
HTTP_LATENCY_MS = _histogram(
    "http_request_latency_ms", "HTTP request latency in milliseconds", HTTP_MS_BUCKETS, ("code", "caller", "action")
)
WS_CONNECTIONS = _counter("sprout_ws_connections_total", "WebSocket connections accepted")
WS_CONNECTIONS_ACTIVE = _gauge("sprout_ws_connections_active", "WebSocket connections open now")
WS_BACKPRESSURE_DISCONNECTS = _counter(
    "sprout_ws_backpressure_disconnects_total", "Connections closed because the client did not keep up"
)
SUBSCRIPTIONS_ACTIVE = _gauge("sprout_subscriptions_active", "Live subscriptions")
EVENTS_RECEIVED = _counter("sprout_events_received_total", "EVENT messages received", ("kind",))
EVENTS_STORED = _counter("sprout_events_stored_total", "Events accepted (duplicates too)", ("kind",))
EVENTS_REJECTED = _counter("sprout_events_rejected_total", "Events refused", ("reason",))
EVENT_PROCESSING_SECONDS = _histogram(
    "sprout_event_processing_seconds", "From the parsed EVENT to its OK", SECONDS_BUCKETS
)
FANOUT_RECIPIENTS = _histogram(
    "sprout_fanout_recipients", "Subscriptions that an event was delivered to", FANOUT_BUCKETS
)
AUTH_ATTEMPTS = _counter("sprout_auth_attempts_total", "NIP-42 attempts", ("method",))
AUTH_FAILURES = _counter("sprout_auth_failures_total", "NIP-42 failures", ("reason",))
MEMBERSHIP_CACHE_HITS = _counter("sprout_membership_cache_hits_total", "Membership answers from memory")
MEMBERSHIP_CACHE_MISSES = _counter("sprout_membership_cache_misses_total", "Membership answers from the database")
ACCESSIBLE_CACHE_HITS = _counter("sprout_accessible_channels_cache_hits_total", "Channel lists from memory")
ACCESSIBLE_CACHE_MISSES = _counter("sprout_accessible_channels_cache_misses_total", "Channel lists from the database")
AUDIT_LOG_SECONDS = _histogram("sprout_audit_log_seconds", "Time to chain one batch of audit entries", SECONDS_BUCKETS)
AUDIT_LOG_ERRORS = _counter("sprout_audit_log_errors_total", "Audit batches that failed and were tried again")
AUDIT_SEND_ERRORS = _counter(
    "sprout_audit_send_errors_total", "Entries that could not be handed to the worker; the outbox still has them"
)

# -- ours ------------------------------------------------------------------------------------------------------------
CHANNEL_CACHE_HITS = _counter("sprout_channel_cache_hits_total", "Channel records from memory")
CHANNEL_CACHE_MISSES = _counter("sprout_channel_cache_misses_total", "Channel records from the database")
CACHE_ENTRIES = _gauge("sprout_cache_entries", "Entries held by a cache", ("cache",))
AUDIT_QUEUE_ENTRIES = _gauge("sprout_audit_queue_entries", "Entries waiting in the audit channel")
AUDIT_BATCH_ENTRIES = _histogram("sprout_audit_batch_entries", "Entries chained in one transaction", BATCH_BUCKETS)
AUDIT_HEAD_SEQ = _gauge("sprout_audit_head_seq", "Sequence number of the last chained entry")
AUDIT_SPOOLED = _counter("sprout_audit_spooled_total", "Entries written to the spool because the database took none")
AUDIT_REPLAYED = _counter("sprout_audit_replayed_total", "Entries moved from the spool into the outbox")
AUDIT_HELD_ENTRIES = _gauge("sprout_audit_held_entries", "Outbox entries that another session keeps locked")
AUDIT_OUTBOX_AGE_SECONDS = _gauge("sprout_audit_outbox_oldest_seconds", "Age of the oldest entry not yet chained")
AUDIT_COSIGNATURES = _counter(
    "sprout_audit_cosignatures_total", "Checkpoints that a witness has cosigned for us", ("witness",)
)
AUDIT_COSIGNED_SIZE = _gauge(
    "sprout_audit_cosigned_entries", "Entries under the last checkpoint that a witness has cosigned", ("witness",)
)
AUDIT_WITNESS_FAILURES = _counter(
    "sprout_audit_witness_failures_total", "Attempts to have a checkpoint cosigned that failed", ("witness",)
)
AUDIT_WITNESS_DISPUTES = _counter(
    "sprout_audit_witness_disputes_total", "Times that a witness had another audit log under our name", ("witness",)
)
AUDIT_WITNESSED = _counter(
    "sprout_audit_witnessed_total", "Checkpoints of other relays that this one was asked to cosign", ("result",)
)
AUDIT_CHECKPOINT_SIZE = _gauge("sprout_audit_checkpoint_size", "Entries that the newest checkpoint covers")
AUDIT_CHECKPOINT_TIME = _gauge(
    "sprout_audit_checkpoint_timestamp_seconds", "When the newest checkpoint was signed, Unix time"
)
AUDIT_CHECKPOINTS = _counter("sprout_audit_checkpoints_total", "Checkpoints signed by this process")
AUDIT_CHECKPOINT_FAILURES = _counter(
    "sprout_audit_checkpoint_failures_total", "Steps of a checkpoint that failed and are tried again", ("step",)
)
AUDIT_CHECKPOINT_DISAGREEMENT = _gauge(
    "sprout_audit_checkpoint_disagreement", "1 while the log does not continue what was signed about it"
)
DELIVERIES = _counter("sprout_fanout_deliveries_total", "EVENT frames given to connections by the fan-out")
FANOUT_SECONDS = _histogram("sprout_fanout_seconds", "Time of one fan-out pass", SECONDS_BUCKETS)
FANOUT_BATCH_EVENTS = _histogram("sprout_fanout_batch_events", "Events taken by one fan-out pass", BATCH_BUCKETS)
FANOUT_PURGED = _counter("sprout_fanout_purged_frames_total", "Queued frames dropped because access was lost")
WS_CLOSES = _counter("sprout_ws_closes_total", "WebSocket connections ended by the relay", ("reason",))
COMMIT_BATCH_EVENTS = _histogram("sprout_commit_batch_events", "Plain events stored in one transaction", BATCH_BUCKETS)
COMMIT_SECONDS = _histogram("sprout_commit_seconds", "Time of one group commit", SECONDS_BUCKETS)
COMMIT_RETRIES = _counter("sprout_commit_retries_total", "Transactions tried again", ("why",))
POOL_CONNECTIONS = _gauge("sprout_pool_connections", "Database connections by state", ("pool", "state"))
POOL_ACQUIRE_TIMEOUTS = _gauge("sprout_pool_acquire_timeouts", "Acquire timeouts since the start", ("pool",))
POOL_WAIT_SECONDS = _gauge("sprout_pool_wait_seconds", "Seconds spent waiting for a connection", ("pool",))
LOOP_LAG_SECONDS = _histogram("sprout_loop_lag_seconds", "Delay of a timer in the event loop", SECONDS_BUCKETS)
SHUTDOWN_SECONDS = _gauge("sprout_shutdown_phase_seconds", "Seconds spent in a phase of the shutdown", ("phase",))
RATE_LIMITED = _counter("sprout_rate_limited_total", "Messages and connections refused for their number", ("what",))
HANDLERS_ACTIVE = _gauge("sprout_handlers_active", "Messages being handled")
SEARCH_SECONDS = _histogram("sprout_search_seconds", "Time of one search filter", SECONDS_BUCKETS)
COUNT_SECONDS = _histogram("sprout_count_seconds", "Time of one COUNT", SECONDS_BUCKETS)
REAPED = _counter("sprout_reaped_total", "Channels archived and events removed because their time was over", ("what",))
TOKENS_ENDED = _counter("sprout_ended_identities_total", "Connections closed because their token had ended", ("why",))
BUILD_INFO = _gauge("sprout_build_info", "Always 1", ("version", "python"))
