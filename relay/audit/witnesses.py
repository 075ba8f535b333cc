"""The witnesses of our own log: other relays that are asked to cosign each new checkpoint (c2sp.org/tlog-witness).

In: a hint that there is a new checkpoint (`hint`). Out: cosignatures, in the database and as a further record in the
file of checkpoints. One task for all (root nursery), in it one for each witness; ended by cancellation.

Rules:
1. A witness gets the newest checkpoint, with the proof that it continues what the witness has; those that a slow one
   missed are covered by the next. Nobody waits for a witness, and one that is away costs one attempt in five minutes.
2. Nothing that a witness says is believed but a signature of its key over our checkpoint; that it has another log, it
   may only claim. But that claim is what witnesses are for: a critical line at every attempt and a metric, until the
   witness cosigns again. It does not stop the relay, or any witness could.
3. The first time after a start each is asked again for what it has cosigned already: where a backup was restored with
   all that this machine knew, the witness is who knows better.
4. The proof is checked here first: where the log no longer fits what was signed, the fault is ours, and is said so.
5. The addresses are the operator's own. No redirects, 10 s an attempt, 64 KiB an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from relay import metrics
from relay.asyncpg_trio import Connection, Pool
from relay.audit import checkpoint_file, checkpoints, note, tree, tree_store
from relay.audit.note import Checkpoint, NoteError
from relay.audit.witness import bare, request_body
from relay.audit.witness_client import Peer, WitnessFailed, opened, post
from relay.errors import AuditError, ConfigError, HeadMismatch, RelayError
from relay.store.failures import STORE_FAILURES

SIZE_TYPE: Final = "text/x.tlog.size"

ATTEMPT_SECONDS: Final = 10.0
FILE_SECONDS: Final = 5.0
# A witness that signs for several nodes of ours, or had a request of ours that we gave up, is at most a step ahead.
CONFLICTS_MAX: Final = 3
RETRY_SECONDS: Final = 1.0
RETRY_SECONDS_MAX: Final = 300.0
# Under load checkpoints come several times a second; a witness needs no more than one of them.
PACE_SECONDS: Final = 1.0

_SIZE: Final = re.compile(r"(0|[1-9][0-9]{0,18})\n")
_COSIGNED: Final = "SELECT coalesce(max(size), 0) FROM audit_cosignatures WHERE origin = $1 AND witness = $2"

log = structlog.get_logger(__name__)


class WitnessRefused(RelayError):
    """A witness does not know our log or our key: for the operators of both to settle."""


class Disputed(RelayError):
    """A witness says that it has cosigned another log under our name."""


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """How it stands with a witness. `cosigned_size`: of the last checkpoint that this process saw cosigned; `failure`:
    of the last attempt, None if it succeeded; `disputed`: that failure is that the witness knows another log."""

    name: str
    url: str
    cosigned_size: int | None
    cosignatures: int
    failures: int
    failure: str | None
    disputed: bool


@dataclass(slots=True, eq=False)
class _State:
    peer: Peer
    # Set by `hint`; replaced by whoever looks for new checkpoints, before the look.
    hinted: trio.Event = field(default_factory=trio.Event)
    # Whether it has cosigned anything since the process began.
    asked: bool = False
    # What the witness has cosigned last, by its own word or signature: origin and size.
    seen: tuple[str, int] | None = None
    cosignatures: int = 0
    cosigned_size: int | None = None
    failures: int = 0
    failure: str | None = None
    disputed: bool = False


class Witnesses:
    """See the rules above.

    Args:
        pubkey: Our own key (hex).
        file: The file of checkpoints; None = cosignatures are kept in the database only.
        retry_seconds: The first back-off; it doubles up to RETRY_SECONDS_MAX.
        pace_seconds: Least time between two checkpoints for one witness.

    Raises ConfigError where the relay would be its own witness: that would look like a second opinion, and be none.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        *,
        pool: Pool,
        pubkey: str,
        file: Path | None,
        retry_seconds: float = RETRY_SECONDS,
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self._states = [_State(peer) for peer in peers]
        if any(each.peer.pubkey == pubkey for each in self._states):
            raise ConfigError("SPROUT_AUDIT_WITNESSES: the relay's own key is no witness")
        self._pool = pool
        self._pubkey = pubkey
        self._file = file
        self._retry_seconds = retry_seconds
        self._pace_seconds = pace_seconds

    def hint(self, _checkpoint: Checkpoint | None = None) -> None:
        """There is a new checkpoint in the database. Never waits."""
        for state in self._states:
            state.hinted.set()

    def statistics(self) -> tuple[PeerStatistics, ...]:
        return tuple(
            PeerStatistics(
                each.peer.name,
                each.peer.url,
                each.cosigned_size,
                each.cosignatures,
                each.failures,
                each.failure,
                each.disputed,
            )
            for each in self._states
        )

    async def run(self) -> None:
        """Asks witnesses until cancelled, and begins with what is there already.

        Cancellation: an attempt under way is given up; the witness may have cosigned, and says so at the next start.
        """
        async with trio.open_nursery() as nursery:
            for state in self._states:
                nursery.start_soon(self._attend, state)
            await trio.sleep_forever()

    # -- one witness -------------------------------------------------------------------------------------------------

    async def _attend(self, state: _State) -> None:
        retry_seconds = self._retry_seconds
        while True:
            state.hinted = trio.Event()
            if await self._attempt(state):
                retry_seconds = self._retry_seconds
                await trio.sleep(self._pace_seconds)
                await state.hinted.wait()
            else:
                # A hint does not shorten this: it comes as often as checkpoints do.
                await trio.sleep(retry_seconds)
                retry_seconds = min(2 * retry_seconds, RETRY_SECONDS_MAX)

    async def _attempt(self, state: _State) -> bool:
        """Whether the witness has cosigned the newest checkpoint. Every failure is said here, and is worth a retry."""
        name = state.peer.name
        try:
            with trio.fail_after(ATTEMPT_SECONDS):
                await self._bring_up_to_date(state)
        except Disputed as error:
            self._failed(state, str(error), disputed=True)
            metrics.AUDIT_WITNESS_DISPUTES.labels(name).inc()
            log.critical("a witness has cosigned another audit log under our name", witness=name, reason=str(error))
        except AuditError as error:
            self._failed(state, str(error))
            log.critical("the audit log does not fit its checkpoints: not shown to a witness", reason=str(error))
        except WitnessRefused as error:
            self._failed(state, str(error))
            log.error("a witness does not cosign for this relay", witness=name, reason=str(error))
        except (WitnessFailed, trio.TooSlowError, *STORE_FAILURES) as error:
            self._failed(state, str(error) or type(error).__name__)
            log.warning("a checkpoint could not be cosigned", witness=name, reason=state.failure)
        else:
            if state.disputed:
                log.warning("a witness that knew another audit log has cosigned ours", witness=name)
            state.failure, state.disputed = None, False
            return True
        return False

    def _failed(self, state: _State, why: str, *, disputed: bool = False) -> None:
        state.failures += 1
        state.failure = why
        # Once disputed, a witness that is merely away has not taken it back.
        state.disputed = state.disputed or disputed
        metrics.AUDIT_WITNESS_FAILURES.labels(state.peer.name).inc()

    async def _bring_up_to_date(self, state: _State) -> None:
        found = await self._newest(state)
        if found is None:
            return
        checkpoint, old = found
        async with opened(state.peer) as client:
            for _ in range(CONFLICTS_MAX):
                async with self._pool.acquire() as con:
                    body = request_body(old, await _proof(con, old, checkpoint), checkpoint)
                answer = await post(client, state.peer, body)
                if answer.status == 200:
                    await self._keep(state, checkpoint, answer.body)
                    return
                if answer.status != 409 or answer.media_type != SIZE_TYPE:
                    raise _no(answer.status, old, checkpoint)
                size = _size(answer.body)
                if size > checkpoint.size:
                    await self._explain_ahead(state, checkpoint, size)
                if size == old == checkpoint.size:
                    raise Disputed(f"it has cosigned another root for our {size} entries")
                state.seen, old = (checkpoint.origin, size), size
        raise WitnessFailed("it contradicts itself about what it has cosigned")

    async def _newest(self, state: _State) -> tuple[Checkpoint, int] | None:
        """The checkpoint that the witness lacks, without others' signatures, and the size that it has; or None."""
        peer = state.peer
        async with self._pool.acquire() as con:
            origin = await checkpoints.origin(con, self._pubkey)
            stored = await checkpoints.newest(con, origin)
            if stored is None:
                return None
            if state.seen is None or state.seen[0] != origin:
                state.seen = origin, await con.fetchval(_COSIGNED, origin, peer.name)
        checkpoint = stored.checkpoint
        if not note.is_signed_by(checkpoint, self._pubkey):
            raise HeadMismatch(f"the checkpoint at {checkpoint.size} entries in audit_checkpoints is not signed by us")
        if note.cosigned_at(checkpoint, peer.name, peer.pubkey) is not None:
            state.cosigned_size = checkpoint.size
            if state.asked:
                return None
        return bare(checkpoint), min(state.seen[1], checkpoint.size)

    async def _explain_ahead(self, state: _State, checkpoint: Checkpoint, size: int) -> None:
        """A witness has more than we have just offered: from another node of ours, or from somebody else. Raises."""
        async with self._pool.acquire() as con:
            newest = await checkpoints.newest(con, checkpoint.origin)
        if newest is not None and newest.checkpoint.size >= size:
            state.seen = checkpoint.origin, size
            raise WitnessFailed("another node has shown it a newer checkpoint meanwhile")
        raise Disputed(f"it has cosigned {size} entries, and our newest checkpoint has {checkpoint.size}")

    async def _keep(self, state: _State, checkpoint: Checkpoint, answer: bytes) -> None:
        """Verifies and stores what a witness answered. The file first: after a failure between the two the witness is
        asked again, and a record that stands there twice says nothing wrong."""
        peer = state.peer
        line = _cosignature(checkpoint, peer, answer)
        stored = await checkpoints.at(self._pool, checkpoint.origin, checkpoint.size)
        whole = checkpoint if stored is None else stored.checkpoint
        if note.cosigned_at(whole, peer.name, peer.pubkey) is None:
            if self._file is not None:
                await self._append(self._file, whole.with_lines([line]))
            await checkpoints.add_cosignatures(self._pool, checkpoint.origin, checkpoint.size, [(peer.name, line)])
        state.asked = True
        state.seen = checkpoint.origin, checkpoint.size
        state.cosigned_size = checkpoint.size
        state.cosignatures += 1
        metrics.AUDIT_COSIGNATURES.labels(peer.name).inc()
        metrics.AUDIT_COSIGNED_SIZE.labels(peer.name).set(checkpoint.size)

    async def _append(self, file: Path, checkpoint: Checkpoint) -> None:
        try:
            with trio.fail_after(FILE_SECONDS):
                # A disk that hangs must not hold the end of the process; what it writes later is a whole record.
                await trio.to_thread.run_sync(checkpoint_file.append, file, checkpoint, abandon_on_cancel=True)
        except (OSError, trio.TooSlowError) as error:
            log.error("a cosignature is not in the file of checkpoints", path=str(file), error=repr(error))


# -- pieces ------------------------------------------------------------------------------------------------------------


async def _proof(con: Connection, old: int, checkpoint: Checkpoint) -> list[bytes]:
    """That the checkpoint continues the first `old` entries.

    Raises:
        AuditError: Rows are missing, or the log is not the one that was signed.
    """
    if old in (0, checkpoint.size):
        return []
    path = await tree_store.consistency_path(con, old, checkpoint.size)
    before = await checkpoints.at(con, checkpoint.origin, old)
    root = await tree_store.root_at(con, old) if before is None else before.checkpoint.root
    if not tree.verify_consistency(old, checkpoint.size, root, checkpoint.root, path):
        raise HeadMismatch(f"the first {checkpoint.size} entries are not those of the checkpoint that was signed")
    return path


def _no(status: int, old: int, checkpoint: Checkpoint) -> RelayError:
    match status:
        case 403 | 404:
            return WitnessRefused(f"status {status}: it does not witness for this key, or not for this log")
        case 422 if old:
            # The proof was checked before it was sent, so what the witness has at that size is not what we have.
            return Disputed(f"what it has cosigned at {old} entries is not what {checkpoint.size} entries continue")
    return WitnessFailed(f"status {status}")


def _cosignature(checkpoint: Checkpoint, peer: Peer, answer: bytes) -> str:
    """The line in an answer that is the witness's for this checkpoint. Raises WitnessFailed."""
    for line in answer.decode(errors="replace").split("\n"):
        try:
            signed = checkpoint.with_lines([line])
        except NoteError:
            continue
        if note.cosigned_at(signed, peer.name, peer.pubkey) is not None:
            return line
    raise WitnessFailed("its answer has no signature of its key for our checkpoint")


def _size(answer: bytes) -> int:
    match = _SIZE.fullmatch(answer.decode("ascii", "replace"))
    if match is None:
        raise WitnessFailed("its conflict does not say at which size")
    return int(match[1])
