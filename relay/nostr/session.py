"""What a connection may do before and after NIP-42: a state machine without I/O, in the manner of h11.

Rules. Everything about the authentication state of a connection lives in the two tables below; nobody else asks "are
we authenticated yet?". The machine does not know sockets, tokens or scopes: it is asked about a message (`check`), and
told how an attempt ended (`authenticated`, `failed`).

    PENDING ──authenticated()──> AUTHENTICATED
       └──────failed()─────────> FAILED

Both other states are final: a connection has one challenge and one attempt. A failed one stays open and is told so each
time it asks for something; when an idle one is closed is up to the owner of the connection, who has a clock.

The type parameter is whatever the owner knows about the authenticated party; the machine only keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from relay.errors import ProtocolError
from relay.nostr import messages
from relay.nostr.messages import (
    AuthMessage,
    ClientMessage,
    CloseMessage,
    CountMessage,
    EventMessage,
    ReqMessage,
)

AuthT = TypeVar("AuthT")


class SessionMisuse(ProtocolError):
    """The owner of the session told it something that cannot have happened: a fault of ours, not of the client."""


class Phase(Enum):
    PENDING = auto()
    AUTHENTICATED = auto()
    FAILED = auto()


class Verb(Enum):
    EVENT = auto()
    REQ = auto()
    COUNT = auto()
    CLOSE = auto()
    AUTH = auto()


class Outcome(Enum):
    """How an attempt to authenticate ended."""

    PROVEN = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Gate:
    """The answer to "may it?". If not `allowed`: the text for OK or CLOSED, and that of a NOTICE before it, if any."""

    allowed: bool
    refusal: str = ""
    notice: str | None = None


_OPEN: Final = Gate(allowed=True)
_EVENT_EARLY: Final = Gate(allowed=False, refusal="auth-required: not authenticated")
_REQ_EARLY: Final = Gate(
    allowed=False,
    refusal="auth-required: not authenticated",
    notice="auth-required: authenticate before subscribing",
)
# Without the NOTICE: who counts has not subscribed to anything.
_COUNT_EARLY: Final = Gate(allowed=False, refusal="auth-required: not authenticated")
_AUTH_AGAIN: Final = Gate(allowed=False, refusal="auth-required: already authenticated")
_AUTH_TOO_LATE: Final = Gate(allowed=False, refusal="auth-required: authentication already failed")

_NOT_YET: Final = {
    Verb.EVENT: _EVENT_EARLY,
    Verb.REQ: _REQ_EARLY,
    Verb.COUNT: _COUNT_EARLY,
    Verb.CLOSE: _OPEN,
}  # fmt: skip
_LET_IN: Final = dict.fromkeys((Verb.EVENT, Verb.REQ, Verb.COUNT, Verb.CLOSE), _OPEN)

GATES: Final = MappingProxyType(
    {
        Phase.PENDING: {**_NOT_YET, Verb.AUTH: _OPEN},
        Phase.AUTHENTICATED: {**_LET_IN, Verb.AUTH: _AUTH_AGAIN},
        Phase.FAILED: {**_NOT_YET, Verb.AUTH: _AUTH_TOO_LATE},
    }
)

TRANSITIONS: Final = MappingProxyType(
    {
        Phase.PENDING: {Outcome.PROVEN: Phase.AUTHENTICATED, Outcome.REFUSED: Phase.FAILED},
        Phase.AUTHENTICATED: {},
        Phase.FAILED: {},
    }
)

_VERBS: Final = MappingProxyType(
    {
        EventMessage: Verb.EVENT,
        ReqMessage: Verb.REQ,
        CountMessage: Verb.COUNT,
        CloseMessage: Verb.CLOSE,
        AuthMessage: Verb.AUTH,
    }
)


def verb_of(message: ClientMessage) -> Verb:
    """The verb under which the tables know a message."""
    return _VERBS[type(message)]


class SessionState(Generic[AuthT]):
    """The authentication state of one connection.

    `challenge` is fresh random text that the caller made for this connection, `relay_url` the address that an AUTH
    event must name.
    """

    __slots__ = ("_auth", "_phase", "challenge", "relay_url")

    def __init__(self, challenge: str, relay_url: str) -> None:
        assert challenge
        self.challenge: Final = challenge
        self.relay_url: Final = relay_url
        self._phase = Phase.PENDING
        self._auth: AuthT | None = None

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def auth(self) -> AuthT | None:
        """What `authenticated` was told, else None."""
        return self._auth

    def greeting(self) -> bytes:
        """The frame that goes out first."""
        return messages.auth(self.challenge)

    def check(self, verb: Verb) -> Gate:
        """May the client do this now?"""
        return GATES[self._phase][verb]

    def refuse(self, message: ClientMessage) -> list[bytes] | None:
        """The frames that refuse this message in this state, or None if the message may go on to its handler."""
        gate = self.check(verb_of(message))
        if gate.allowed:
            return None
        frames = [] if gate.notice is None else [messages.notice(gate.notice)]
        if isinstance(message, EventMessage | AuthMessage):
            frames.append(messages.ok(message.event.id, False, gate.refusal))
        else:
            frames.append(messages.closed(message.sub_id, gate.refusal))
        return frames

    def authenticated(self, auth: AuthT) -> None:
        """The one attempt succeeded. Raises SessionMisuse if there was one before."""
        self._move(Outcome.PROVEN)
        self._auth = auth

    def failed(self) -> None:
        """The one attempt failed. Raises SessionMisuse if there was one before."""
        self._move(Outcome.REFUSED)

    def _move(self, outcome: Outcome) -> None:
        following = TRANSITIONS[self._phase].get(outcome)
        if following is None:
            raise SessionMisuse(f"{outcome.name} in {self._phase.name}")
        self._phase = following
