"""`POST /audit/witness/add-checkpoint`: other relays ask this one to cosign their checkpoints (c2sp.org/tlog-witness).

In: a signed checkpoint and a proof, from anybody: the signature in it is the only credential. Out: a cosignature line,
the size that this witness is at (409), or a problem. What is decided, and why, is in relay/audit/witness.py; which logs
are known is the setting SPROUT_AUDIT_WITNESS_FOR, and without it every log is unknown.

Checkpoints are public, so anybody can send one again: an address has so many requests a minute, and only a few of those
that a known key has signed are decided at once, which leaves the connections of the pool to the relay's own work.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import Final
from uuid import uuid4

import structlog
import trio
from quart import Blueprint, Response, current_app, request

from relay import metrics
from relay.access.rate_limit import KeyedBuckets, TokenBucket, address_key
from relay.audit.entry import Action, new_entry
from relay.audit.note import Checkpoint, NoteError
from relay.audit.witness import (
    REQUEST_BYTES_MAX,
    Conflict,
    Cosigned,
    Declined,
    Split,
    Witness,
    log_of,
    parse_request,
    trusted_logs,
)
from relay.errors import StoreGone
from relay.http.auth import services
from relay.http.problems import as_problem
from relay.http.refusals import ApiError, unavailable
from relay.http.services import Services
from relay.http.values import raw_body
from relay.nostr.kinds import AUDIT_CHECKPOINT

PATH: Final = "/audit/witness/add-checkpoint"
SIZE_TYPE: Final = "text/x.tlog.size"
WHAT: Final = "checkpoints"

# One a second is what a busy log asks for; several may stand behind one address.
REQUESTS_PER_MINUTE: Final = 300
DECIDED_AT_ONCE: Final = 2
TURN_SECONDS: Final = 3.0
# Two signed roots for one size: each pair is kept once, and only so many, or repeating it would fill our own log.
SPLITS_PER_MINUTE: Final = 6
SPLITS_REMEMBERED: Final = 1000
NOTE_BYTES_KEPT: Final = 12 << 10

_EXTENSION: Final = "relay.audit_witness"

routes = Blueprint("audit_witness", __name__)
log = structlog.get_logger(__name__)


class Door:
    """What requests share, of one app: the witness, and how much may be asked of it."""

    def __init__(self, parts: Services) -> None:
        """Raises ConfigError, as the start of the relay did."""
        trusted = trusted_logs(parts.settings.audit_witness_for)
        self.witness = Witness(parts.pool, parts.relay_key, trusted, _now_us)
        self.addresses = KeyedBuckets(REQUESTS_PER_MINUTE, time.monotonic)
        self.turns = trio.Semaphore(DECIDED_AT_ONCE)
        self._splits_left = TokenBucket(SPLITS_PER_MINUTE, time.monotonic)
        self._splits: OrderedDict[tuple[str, int, bytes], None] = OrderedDict()

    def is_news(self, split: Split) -> bool:
        """Whether to keep this pair of roots: it was not seen by this process, and there were not too many."""
        key = split.seen.origin, split.seen.size, split.seen.root
        if key in self._splits or not self._splits_left.take():
            return False
        self._splits[key] = None
        if len(self._splits) > SPLITS_REMEMBERED:
            self._splits.popitem(last=False)
        return True


@routes.post(PATH)
async def add_checkpoint() -> Response:
    door = _door()
    _admit(door)
    request.max_content_length = REQUEST_BYTES_MAX
    body = await raw_body()
    try:
        wanted = parse_request(body)
    except NoteError as error:
        raise _no("malformed", 400, str(error)) from None
    if (declined := door.witness.screen(wanted)) is not None:
        raise _no("declined", declined.status, declined.why)
    answer = None
    with trio.move_on_after(TURN_SECONDS):
        async with door.turns:
            answer = await door.witness.answer(wanted)
    if answer is None:
        raise unavailable()
    return await _say(door, answer)


async def _say(door: Door, answer: Cosigned | Conflict | Split | Declined) -> Response:
    match answer:
        case Cosigned(lines):
            metrics.AUDIT_WITNESSED.labels("cosigned").inc()
            text = "".join(f"{line}\n" for line in lines)
            return Response(text, 200, content_type="text/plain; charset=utf-8")
        case Conflict(size):
            metrics.AUDIT_WITNESSED.labels("conflict").inc()
            return _conflict(size)
        case Split():
            metrics.AUDIT_WITNESSED.labels("split").inc()
            if door.is_news(answer):
                await _keep(answer)
            return _conflict(answer.known.size)
        case Declined(status, why):
            raise _no("declined", status, why)


def _conflict(size: int) -> Response:
    return Response(f"{size}\n", 409, content_type=SIZE_TYPE)


def _no(result: str, status: int, why: str) -> ApiError:
    metrics.AUDIT_WITNESSED.labels(result).inc()
    return ApiError(status, "not_cosigned", why)


def _admit(door: Door) -> None:
    """Raises ApiError (429) where the address has asked too often. This machine is not counted: see `address_key`."""
    client = request.scope.get("client")
    address = str(client[0]) if client else ""
    key = address_key(address)
    if key is None or door.addresses.take(key):
        return
    metrics.RATE_LIMITED.labels(WHAT).inc()
    services().ingest.note(Action.RATE_LIMIT_EXCEEDED, address, WHAT)
    seconds = int(door.addresses.seconds_left(key)) + 1
    raise ApiError(429, "rate-limited", f"too many {WHAT}, slow down", retry_after_seconds=seconds)


async def _keep(split: Split) -> None:
    """Writes the evidence where it lasts: to the operator, and into our own audit log."""
    known, seen = split.known, split.seen
    log.critical(
        "a log that we witness has signed two different roots for the same size",
        origin=seen.origin,
        size=seen.size,
        known=known.note,
        seen=seen.note,
    )
    found = log_of(seen.origin)
    assert found is not None, "screened before"
    entry = new_entry(
        Action.EVENT_REFUSED,
        time_us=_now_us(),
        uuid=str(uuid4()),
        actor=found[0],
        kind=AUDIT_CHECKPOINT,
        metadata={"reason": "two roots for one size", "known": _shown(known), "seen": _shown(seen)},
    )
    try:
        await services().ingest.record([entry])
    except StoreGone as error:
        log.error("the evidence is in this log only", error=str(error))


def _shown(checkpoint: Checkpoint) -> str:
    """The note, or, of one that somebody has made very long, its hash: the log line has the whole."""
    text = checkpoint.note.encode()
    return text.decode() if len(text) <= NOTE_BYTES_KEPT else f"sha256:{hashlib.sha256(text).hexdigest()}"


@routes.after_request
async def _as_problem(response: Response) -> Response:
    """Refusals are problem details, but for the one whose form the protocol says."""
    return response if response.mimetype == SIZE_TYPE else await as_problem(response)


def _door() -> Door:
    extensions = current_app.extensions
    if _EXTENSION not in extensions:
        extensions[_EXTENSION] = Door(services())
    found = extensions[_EXTENSION]
    assert isinstance(found, Door)
    return found


def _now_us() -> int:
    return time.time_ns() // 1000
