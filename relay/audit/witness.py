"""This relay as a witness: cosigning the checkpoints of other relays' audit logs (c2sp.org/tlog-witness).

In: the body of a request. Out: a cosignature, or one of the protocol's refusals. A cosignature says: of the log of that
name, this witness has seen nothing larger, and what it saw before is the beginning of this. So a relay that shows two
people two logs needs a witness that lies with it.

Rules:
1. What was cosigned last is compared and replaced in one transaction, under a lock on the log's key: of two requests at
   once one is a conflict, on several nodes too. The row is committed before the signature leaves.
2. Only one log of a key goes on: once a later generation was cosigned (its operator has accepted a loss), an earlier
   one is refused. A new generation begins at nothing, which is why it is said aloud: so a log gets rid of its past.
3. What was cosigned makes no entry in our own audit log: two relays that witness each other would never come to rest.
   Two signed roots for one size (`Split`) are evidence, and whoever calls this keeps them.

HTTP is not here (relay/http/audit_witness.py), and neither is our own log's side (relay/audit/witnesses.py).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from relay.asyncpg_trio import Connection, Pool
from relay.audit import note
from relay.audit.note import Checkpoint, NoteError
from relay.audit.tree import EMPTY_ROOT, HASH_BYTES, verify_consistency
from relay.errors import ConfigError
from relay.nostr.ids import parse_pubkey
from relay.nostr.keys import SecretKey

# c2sp.org/tlog-witness: the path from a leaf to the root of the largest tree there can be.
PROOF_LINES_MAX: Final = 63
REQUEST_BYTES_MAX: Final = note.NOTE_BYTES_MAX + 4096

_ORIGIN: Final = re.compile(r"relay-audit/([0-9a-f]{64})(?:/([1-9][0-9]{0,8}))?")
_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")

# The third kind of name that is locked this way; see relay/store/events.py and relay/store/profiles.py.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 3))"
_KNOWN: Final = "SELECT origin, size, root, note FROM audit_witnessed WHERE origin = $1 OR origin LIKE $1 || '/%'"
_REMEMBER: Final = """
INSERT INTO audit_witnessed (origin, size, root, note, time_us) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (origin) DO UPDATE
SET size = excluded.size, root = excluded.root, note = excluded.note, time_us = excluded.time_us
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """`proof`: that the tree of `checkpoint` begins with the tree of `old` leaves."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Known:
    """What was cosigned last under a name. `checkpoint` is None for a log that nothing is known of."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Cosigned:
    """`lines`: signature lines without their ends."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """The log thinks that something else was cosigned last: `size` was."""

    size: int


@dataclass(frozen=True, slots=True)
class Split:
    """The log has signed two roots for one size. Both checkpoints are the proof."""

    known: Checkpoint
    seen: Checkpoint


@dataclass(frozen=True, slots=True)
class Declined:
    """`status` is that of c2sp.org/tlog-witness."""

    status: int
    why: str


Answer = Cosigned | Conflict | Split | Declined


# -- names -------------------------------------------------------------------------------------------------------------


def name_of(pubkey: str) -> str:
    """The name under which the relay with this key (hex) cosigns."""
    return f"relay-witness/{pubkey}"


def log_of(origin: str) -> tuple[str, int] | None:
    """The key (hex) and the generation of the log with this name; None for a name of another make."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    generation = int(match[2]) if match[2] else 1
    return (match[1], generation) if note.origin_of(match[1], generation) == origin else None


def trusted_logs(text: str) -> frozenset[str]:
    """The keys (hex) in SPROUT_AUDIT_WITNESS_FOR. Raises ConfigError, which names the first that is none."""
    found = set()
    for part in filter(None, map(str.strip, text.split(","))):
        pubkey = parse_pubkey(part)
        if pubkey is None:
            raise ConfigError(f"SPROUT_AUDIT_WITNESS_FOR: not a public key: {part[:100]}")
        found.add(pubkey)
    return frozenset(found)


def bare(checkpoint: Checkpoint) -> Checkpoint:
    """The same with the signatures under its own name only."""
    mine = tuple(each for each in checkpoint.signatures if each.name == checkpoint.origin)
    return Checkpoint(checkpoint.origin, checkpoint.size, checkpoint.root, checkpoint.text, mine)


# -- the request -------------------------------------------------------------------------------------------------------


def parse_request(body: bytes) -> Request:
    """A request from its bytes. Nothing is verified.

    Raises:
        NoteError: It does not have the form, down to the byte.
    """
    if len(body) > REQUEST_BYTES_MAX:
        raise NoteError(f"a request is not longer than {REQUEST_BYTES_MAX} bytes")
    try:
        head, separator, text = body.decode().partition("\n\n")
    except UnicodeDecodeError as error:
        raise NoteError("a request is UTF-8") from error
    old, *lines = head.split("\n")
    match = _OLD.fullmatch(old)
    if match is None or not separator:
        raise NoteError("a request is a line `old <size>`, lines of a proof, an empty line, and a checkpoint")
    if len(lines) > PROOF_LINES_MAX:
        raise NoteError(f"a proof has no more than {PROOF_LINES_MAX} lines")
    request = Request(int(match[1]), tuple(map(_hash, lines)), note.parse(text))
    if request.old > request.checkpoint.size:
        raise NoteError("the old size is larger than that of the checkpoint")
    return request


def request_body(old: int, proof: Sequence[bytes], checkpoint: Checkpoint) -> bytes:
    """The bytes of a request."""
    lines = [f"old {old}", *(b64encode(each).decode() for each in proof), "", checkpoint.note]
    return "\n".join(lines).encode()


def _hash(line: str) -> bytes:
    try:
        found = b64decode(line, validate=True)
    except (Base64Error, ValueError) as error:
        raise NoteError("a line of the proof is not base64") from error
    # One spelling each, as in notes.
    if len(found) != HASH_BYTES or b64encode(found).decode() != line:
        raise NoteError(f"a line of the proof is {HASH_BYTES} bytes in base64")
    return found


# -- the decision ------------------------------------------------------------------------------------------------------


def screen(request: Request, trusted: frozenset[str]) -> Declined | None:
    """What needs no memory: whether we witness for this log, and whether it has signed."""
    found = log_of(request.checkpoint.origin)
    if found is None or found[0] not in trusted:
        return Declined(404, "this witness does not know that log")
    if not note.is_signed_by(request.checkpoint, found[0]):
        return Declined(403, "the checkpoint is not signed by the key of its log")
    return None


def decide(request: Request, known: Known) -> Conflict | Split | Declined | None:
    """Whether the checkpoint continues what is known of its log; None if it does. `screen` has let it pass."""
    checkpoint = request.checkpoint
    if checkpoint.size == known.size and checkpoint.root != known.root:
        # Whatever old size it names: both are signed, so it is this that must be heard.
        if known.checkpoint is not None:
            return Split(known.checkpoint, checkpoint)
        return Declined(422, "that is not the root of an empty log")
    if request.old != known.size:
        return Conflict(known.size)
    if not verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, request.proof):
        return Declined(422, "the proof does not show that the log continues what this witness has cosigned")
    return None


class Witness:
    """Answers requests. `trusted`: the keys of the logs that it cosigns for; `now_us`: microseconds since 1970."""

    def __init__(self, pool: Pool, key: SecretKey, trusted: frozenset[str], now_us: Callable[[], int]) -> None:
        self._pool = pool
        self._key = key
        self._trusted = trusted
        self._now_us = now_us
        self._name = name_of(key.public_hex)

    def screen(self, request: Request) -> Declined | None:
        """See the function of that name. Waits for nothing."""
        return screen(request, self._trusted)

    async def answer(self, request: Request) -> Answer:
        """Decides about a request that `screen` has let pass, and remembers what is cosigned.

        Raises: what the store raises; then nothing was cosigned, or, where only the COMMIT is in doubt, nothing was
        given out, and the log hears by a conflict how far this witness is.

        Cancellation: as a failure.
        """
        origin = request.checkpoint.origin
        found = log_of(origin)
        assert found is not None, "screened before"
        pubkey, generation = found
        async with self._pool.transaction() as con:
            await con.execute(_LOCK, pubkey)
            known = await _known(con, pubkey)
            latest = max((number for number, _ in known), default=0)
            if generation < latest:
                return Declined(403, f"this log has gone on as {note.origin_of(pubkey, latest)}")
            answer = decide(request, next((each for number, each in known if number == generation), Known()))
            if answer is not None:
                return answer
            # One clock for the row and the signature, which has only seconds.
            time_us = self._now_us()
            # Others' signatures are not ours to keep.
            kept = bare(request.checkpoint)
            await con.execute(_REMEMBER, origin, kept.size, kept.root, kept.note, time_us)
        if known and generation > latest:
            log.warning("a log that we witness was begun anew", origin=origin, before=note.origin_of(pubkey, latest))
        return Cosigned((note.cosign(request.checkpoint, self._name, self._key, time_us // 1_000_000),))


async def _known(con: Connection, pubkey: str) -> list[tuple[int, Known]]:
    """What was cosigned of each generation of a key's log."""
    rows = await con.fetch(_KNOWN, note.origin_of(pubkey))
    return [(_generation(row), Known(row["size"], bytes(row["root"]), note.parse(row["note"]))) for row in rows]


def _generation(row: Any) -> int:
    found = log_of(row["origin"])
    assert found is not None, "only such names are stored"
    return found[1]
