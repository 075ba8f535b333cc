"""The log at the start: is it the one that was signed? And what an operator does when it is not.

In: the database and the file of checkpoints, before anything is chained. Out: what is known (`Known`), or a sentence
that says what is wrong, what that means, and both ways to go on. A database that was restored from a backup and one
that was tampered with look the same from here: the file, which neither of them wrote, knows more.

    check            compares; repairs only what is missing on one side and present on the other
    accept_loss      says, for ever and in writing, that the log goes on without what was lost: under a new name

A log without any checkpoint (an upgrade, an import) is fine. What this cannot see: a tail that was cut off behind the
newest checkpoint of both, or both rolled back together; for that there are witnesses and copies of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from relay.asyncpg_trio import Connection
from relay.audit import checkpoint_file, checkpoints, log, note, outbox, tree_store
from relay.audit.chain import Head
from relay.audit.checkpoint_file import Problem
from relay.audit.entry import Action, new_entry
from relay.audit.note import Checkpoint, NoteError
from relay.audit.signing import demand_head, tree_of
from relay.audit.uuids import new_uuids
from relay.errors import AuditError, ChainTruncated, ConfigError, HeadMismatch
from relay.nostr.keys import SecretKey

# Reading the end of a small file; a disk that takes longer is no place to keep a log.
FILE_SECONDS = 10.0
REASON_CHARACTERS_MAX = 1000

_GO_ON = (
    "Either the database was restored from an older backup, or rows of audit_log were removed or changed. To go on, "
    "restore the missing rows (from a newer backup, or replay the write-ahead log), or accept the loss with "
    "`relay audit accept-loss --reason TEXT`: the log then goes on under a new name, and says so for ever."
)
_FOREIGN = (
    "Keep a copy, for it is evidence, and take it away there: the relay then compares the log with the checkpoints "
    "that are left."
)
_LOCK = f"SELECT pg_advisory_xact_lock({log.ADVISORY_LOCK})"
_INSERT_LOSS = """
INSERT INTO audit_losses (number, time_us, origin, size, root, head_seq, head_hash, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to compare with: the log's name, and its newest checkpoint in the database and in the file."""

    origin: str
    generation: int
    in_database: Checkpoint | None
    in_file: Checkpoint | None
    file_exists: bool
    file_generation: int

    @property
    def largest(self) -> Checkpoint | None:
        both = [each for each in (self.in_database, self.in_file) if each is not None]
        return max(both, key=lambda each: each.size, default=None)


async def check(con: Connection, pubkey: str, file: Path, now_us: Callable[[], int]) -> Known:
    """Compare the log with what the relay with this key (hex) has signed about it. To be called before anything is
    chained. A checkpoint that only the file has is put back into the database.

    Raises:
        ChainTruncated: the log is shorter than one of them says.
        HeadMismatch: it has other entries, or somebody put checkpoints there that are not this relay's.
        ConfigError: the file is there and cannot be read.
    """
    known = await look(con, pubkey, file)
    try:
        await _compare(con, known, file)
    except AuditError as error:
        raise type(error)(f"{error}. {_GO_ON}") from error
    if known.in_file is not None and known.in_file == known.largest and known.in_file != known.in_database:
        # The last run signed at its end what the database did not take any more.
        alone = Checkpoint(*_parts(known.in_file), known.in_file.signatures[:1])
        await checkpoints.insert(con, alone, now_us())
    _warn(known, file)
    return known


async def look(con: Connection, pubkey: str, file: Path) -> Known:
    """The newest checkpoints, each signed by the relay's key. Raises HeadMismatch and ConfigError as `check`."""
    generation = await checkpoints.generation(con)
    origin = note.origin_of(pubkey, generation)
    try:
        stored = await checkpoints.newest(con, origin)
    except NoteError as error:
        raise HeadMismatch(f"the newest checkpoint in audit_checkpoints is damaged: {error}. {_FOREIGN}") from error
    in_database = None if stored is None else stored.checkpoint
    found = await _read_file(file)
    mine = [each for each in found or () if each.origin.partition("/")[2].partition("/")[0] == pubkey]
    for checkpoint, where in [(in_database, "audit_checkpoints")] + [(each, str(file)) for each in mine]:
        if checkpoint is not None and not note.is_signed_by(checkpoint, pubkey):
            raise HeadMismatch(
                f"{where}: the checkpoint of {checkpoint.size} entries of {checkpoint.origin} is not signed by this "
                f"relay's key: somebody else wrote it there. {_FOREIGN}"
            )
    newest = max((each for each in mine if each.origin == origin), key=lambda each: each.size, default=None)
    last = max((_generation(each) for each in mine), default=0)
    return Known(origin, generation, in_database, newest, found is not None, last)


async def accept_loss(
    con: Connection, key: SecretKey, file: Path, reason: str, now_us: Callable[[], int]
) -> Checkpoint:
    """Go on with the log as it is, under a new name: a row of `audit_losses`, an audit entry, and the first checkpoint
    of the new name, in the database and in the file. The relay should not be running.

    Raises:
        AuditError: nothing is lost, there is no reason, or rows are missing inside of what is left: such a log cannot
            be signed under any name.
        OSError: the file could not be written; all else is done, and the next start writes it.
    """
    reason = reason.strip()
    if not 0 < len(reason) <= REASON_CHARACTERS_MAX:
        raise AuditError(f"a loss is accepted with a reason, of at most {REASON_CHARACTERS_MAX} characters")
    async with con.transaction(isolation="read_committed"):
        await con.execute(_LOCK)
        known = await _lost(con, key.public_hex, file)
        number = max(known.generation, known.file_generation)
        origin = note.origin_of(key.public_hex, number + 1)
        head = await log.read_head(con)
        # Stored nodes are of the rows that are gone.
        await tree_store.clear(con)
        checkpoint = note.sign(origin, head.seq, await tree_store.root_at(con, head.seq), key)
        await _write_loss(con, key, known, number, head, reason, now_us())
        await checkpoints.insert(con, checkpoint, now_us())
    _log.warning("a loss was accepted", origin=origin, size=head.seq, reason=reason)
    await trio.to_thread.run_sync(checkpoint_file.append, file, checkpoint)
    return checkpoint


async def _compare(con: Connection, known: Known, file: Path) -> None:
    if known.file_generation > known.generation:
        raise HeadMismatch(
            f"{file} says that a loss was accepted ({note.origin_of('…', known.file_generation)}), and the database "
            "does not know of it"
        )
    if known.generation > 1 and known.largest is None:
        raise HeadMismatch(f"a loss was accepted, but there is no checkpoint of {known.origin} any more")
    both = known.in_database, known.in_file
    if both[0] is not None and both[1] is not None and both[0].size == both[1].size and both[0].root != both[1].root:
        raise HeadMismatch(
            f"audit_checkpoints and {file} have two checkpoints of {both[0].size} entries with two roots, both signed "
            f"by this relay: {both[0].root.hex()} and {both[1].root.hex()}"
        )
    head = (await log.read_end(con))[0]
    for checkpoint, where in zip(both, ("audit_checkpoints", str(file)), strict=True):
        if checkpoint is not None:
            demand_head(head, checkpoint.size, f"the checkpoint of {checkpoint.size} entries in {where}")
            await _demand_tree(con, checkpoint, where)


async def _demand_tree(con: Connection, checkpoint: Checkpoint, where: str) -> None:
    try:
        await tree_of(con, checkpoint)
    except AuditError as error:
        kind = ChainTruncated if isinstance(error, ChainTruncated) else HeadMismatch
        raise kind(f"{where}, checkpoint of {checkpoint.size} entries: {error}") from error


async def _read_file(file: Path) -> list[Checkpoint] | None:
    """None where there is no file."""

    def report(problem: Problem) -> None:
        note_it = _log.info if problem.torn else _log.warning
        note_it("the file of checkpoints has something else in it", file=str(file), line=problem.line or None,
                what=problem.what)  # fmt: skip

    try:
        with trio.fail_after(FILE_SECONDS):
            read = partial(checkpoint_file.read_end, file, report)
            return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    except FileNotFoundError:
        return None
    except (OSError, trio.TooSlowError) as error:
        raise ConfigError(f"SPROUT_AUDIT_CHECKPOINT_FILE: {file} cannot be read: {error!r}") from error


async def _lost(con: Connection, pubkey: str, file: Path) -> Known:
    known = await look(con, pubkey, file)
    try:
        await _compare(con, known, file)
    except AuditError:
        return known
    raise AuditError("nothing is lost: the log is the one that was signed")


async def _write_loss(
    con: Connection, key: SecretKey, known: Known, number: int, head: Head, reason: str, time_us: int
) -> None:
    lost = known.largest
    size, root = (lost.size, lost.root) if lost is not None else (0, bytes(32))
    row = number, time_us, known.origin, size, root, head.seq, head.hash, reason
    await con.execute(_INSERT_LOSS, *row)
    entry = new_entry(
        Action.SETTINGS_CHANGED,
        time_us=time_us,
        uuid=new_uuids(1)[0],
        actor=key.public_hex,
        metadata={
            "changed": "audit loss accepted",
            "reason": reason,
            "old_origin": known.origin,
            "old_size": size,
            "old_root": root.hex(),
            "origin": note.origin_of(key.public_hex, number + 1),
            "head_seq": head.seq,
            "head_hash": head.hash.hex(),
        },
    )
    await outbox.insert(con, [entry])


def _warn(known: Known, file: Path) -> None:
    if known.in_database is not None and not known.file_exists:
        _log.warning("the file of checkpoints is not there and is begun anew", file=str(file))
    elif known.in_database is None and known.in_file is not None:
        _log.warning("audit_checkpoints was empty: the newest one was taken from the file", file=str(file))


def _generation(checkpoint: Checkpoint) -> int:
    last = checkpoint.origin.split("/")[2:]
    return int(last[0]) if last and last[0].isdecimal() else 1


def _parts(checkpoint: Checkpoint) -> tuple[str, int, bytes, str]:
    return checkpoint.origin, checkpoint.size, checkpoint.root, checkpoint.text
