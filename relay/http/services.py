"""What the HTTP routes work with: the parts of the running relay, as the supervisor put them together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from relay.access.authenticate import Authenticator
from relay.access.directory import Directory
from relay.access.identity import Caller
from relay.asyncpg_trio import Pool
from relay.audit.worker import AuditWorker
from relay.config import Settings
from relay.errors import Refusal
from relay.fanout.hub import Hub
from relay.ingest.pipeline import Ingest
from relay.nostr.keys import SecretKey
from relay.query.gather import Answers


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a probe found: the database answers; no audit entry has waited too long for its place in the chain."""

    postgres: bool
    audit: bool


class Asking(Protocol):
    """A turn for one question to the store; `long`: a count or a search."""

    def __call__(self, caller: Caller, *, long: bool) -> AbstractAsyncContextManager[object]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Attributes that are not obvious:

    readiness: Probes the database and the audit now; bounded by its caller.
    shutting_down: True from the moment readiness is to say so. Everything is still served then.
    writes_refused: True from the moment new writes are; None = from the moment `shutting_down` is true.
    uptime: Seconds since the start.
    refuse_event: Whether this key has sent too many events, over either door; None = it may send one more.
    other_pools: Pools beside the main one, for `/metrics` only.
    handling, asking: Around one event, and around one question to the store: a turn among those of all connections
        (`relay.websocket.guests`). Raise `Refused`, and `asking` also StoreBusy.
    answers: The memory of the bridge's answers.
    """

    settings: Settings
    pool: Pool
    directory: Directory
    ingest: Ingest
    hub: Hub
    audit: AuditWorker
    authenticator: Authenticator
    relay_key: SecretKey
    readiness: Callable[[], Awaitable[Readiness]]
    shutting_down: Callable[[], bool]
    uptime: Callable[[], float]
    writes_refused: Callable[[], bool] | None = None
    other_pools: tuple[Pool, ...] = ()
    refuse_event: Callable[[Caller], Refusal | None] = lambda _: None
    handling: Callable[[Caller], AbstractAsyncContextManager[object]] = lambda _: nullcontext()
    asking: Asking = lambda _, *, long: nullcontext()  # noqa: ARG005
    answers: Answers = field(default_factory=Answers)

    @property
    def closed_to_writes(self) -> bool:
        return (self.writes_refused or self.shutting_down)()
