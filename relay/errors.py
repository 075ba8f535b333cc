"""Expected refusals and the exception tree.

A refusal is a value: the relay said no, on purpose, and the client is told why. It carries the text that goes on the
wire and its class, from which the HTTP status and the reject metric follow. `Refused` carries a refusal out of a
transaction, where only an exception can roll back.

    RelayError
    ├── ConfigError           the configuration does not make sense (exit code 2)
    ├── Refused               a Refusal found inside a transaction
    ├── ProtocolError         a peer broke the protocol (defined with its texts in relay/nostr)
    ├── StoreError
    │   ├── StoreBusy         a timeout, a full pool, a lock that did not come: try again
    │   ├── StoreGone         the server cannot be reached
    │   └── MigrationError    the schema is not what this version expects
    ├── AuditError
    │   ├── ChainBroken       a recomputed hash or a link does not match
    │   ├── ChainTruncated    rows are missing
    │   └── HeadMismatch      the head is not the one that was last known
    └── EmbeddedError ...     defined in relay/embedded
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RelayError(Exception):
    """Everything this package raises on purpose."""


class ConfigError(RelayError):
    """The configuration is wrong; the text names every wrong value."""


class ProtocolError(RelayError):
    """A peer sent what the protocol does not allow."""


class StoreError(RelayError):
    """The store could not do what was asked."""


class StoreBusy(StoreError):
    """A deadline passed while waiting for the store."""


class StoreGone(StoreError):
    """The database server cannot be reached."""


class MigrationError(StoreError):
    """The schema found is not one that this version can work on."""


class AuditError(RelayError):
    """The audit log refused an entry or is not as it should be."""


class ChainBroken(AuditError):
    """A row's hash or its link to the row before does not hold."""


class ChainTruncated(AuditError):
    """Rows that must exist are missing."""


class HeadMismatch(AuditError):
    """The head of the chain is not the one last known."""


class RefusalClass(Enum):
    """What kind of no: (label of `sprout_events_rejected_total`, HTTP status)."""

    INVALID = ("invalid", 400)
    AUTH = ("auth", 403)
    SCOPE = ("scope", 403)
    ERROR = ("error", 500)
    LIMITED = ("limited", 429)
    UNAVAILABLE = ("unavailable", 503)

    @property
    def reason(self) -> str:
        return self.value[0]

    @property
    def http_status(self) -> int:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An expected no. `text` is byte for byte what the client reads, prefix included."""

    text: str
    kind: RefusalClass = RefusalClass.INVALID

    @classmethod
    def invalid(cls, detail: str) -> Refusal:
        return cls(f"invalid: {detail}", RefusalClass.INVALID)

    @classmethod
    def auth(cls, text: str) -> Refusal:
        return cls(text, RefusalClass.AUTH)


INTERNAL_ERROR = Refusal("error: internal server error", RefusalClass.ERROR)
# The same words to a WebSocket, which may try again at any time; over HTTP the status says that it is worth it.
STORE_UNAVAILABLE = Refusal(INTERNAL_ERROR.text, RefusalClass.UNAVAILABLE)
SHUTTING_DOWN = Refusal("error: shutting down", RefusalClass.UNAVAILABLE)
TOO_BUSY = Refusal("rate-limited: too many concurrent requests", RefusalClass.UNAVAILABLE)


class Refused(RelayError):
    """Carries a refusal out of a transaction, so that leaving it rolls back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group and in the groups in it; an error that is no group is its own only one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
