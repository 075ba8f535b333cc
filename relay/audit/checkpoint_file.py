"""Checkpoints in a file beside the database: what a restored backup, or whoever rewrites the tables, cannot take back.

In: checkpoints, one after another. Out: the same. The file is only ever appended to; copies of it elsewhere are what
`relay audit verify --against` takes. It belongs to whoever runs the relay; the text in it is no secret.

A record is a signed note and an empty line. A note has an empty line of its own, so a file is read as blocks: one that
begins with a dash is the signatures of the block before it. What does not fit that is skipped up to the next empty line
and reported with its place, so a torn or scribbled record costs only itself. Whoever writes behind a torn record leaves
one more empty line after it: so it is known for one later, and not taken for the work of somebody else.

Everything here is synchronous and may wait for a disk: call it in a thread, with a deadline.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from relay.audit.note import NOTE_BYTES_MAX, Checkpoint, NoteError, parse
from relay.config import Settings

FILE_NAME = "audit-checkpoints.txt"
# How much of the end is read for the newest: a thousand records or so, of which the last few matter.
END_BYTES = 256 * 1024

# Of BIP-340 and of Ed25519; a cosignature has its time in front.
SIGNATURE_BYTES = 64

_SIGNATURE = "— ".encode()

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a file has in place of a checkpoint: the line (from 1; 0 if unknown) on which it begins, and a sentence.
    `torn` where it is the beginning of a record that was being written when the machine stopped."""

    line: int
    what: str
    torn: bool = False


Report = Callable[[Problem], object]


def place(settings: Settings, data_dir: Path) -> Path:
    """Where this relay keeps its checkpoints."""
    return settings.audit_checkpoint_file or data_dir / FILE_NAME


def append(path: Path, checkpoint: Checkpoint) -> None:
    """Write one record and wait until it is on the disk; make the file (0600) and its directory where there is none.

    Raises:
        OSError: it is not known to be there. What was half written is taken back where that works, and is otherwise
            skipped by readers; writing the same again does no harm.
    """
    record = f"{checkpoint.note}\n".encode()
    descriptor, made = _open(path)
    try:
        # Other nodes of this machine, and the commands, may append to the same file.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        try:
            _write(descriptor, _separator(descriptor, size) + record)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if made:
        _sync_directory(path.parent)


def read(path: Path, report: Report | None = None) -> Iterator[Checkpoint]:
    """Every checkpoint of the file, in its order, in constant memory; nothing is verified. `report` gets what is none
    (without it, the log does).

    Raises:
        OSError: the file cannot be read. Whatever stands in it raises nothing.
    """
    with path.open("rb") as file:
        yield from _records(file, report or _warn(path))


def read_end(path: Path, report: Report | None = None) -> list[Checkpoint]:
    """The checkpoints at the end of the file: enough for the newest of every origin that is still written to, and cheap
    for a file of any length. The whole file where its end has none. Raises as `read`."""
    with path.open("rb") as file:
        start = max(0, os.fstat(file.fileno()).st_size - END_BYTES)
        file.seek(start)
        if start:
            _skip_block(file)
        found = list(_records(file, report or _warn(path), middle=start > 0))
    return found if found or not start else list(read(path, report))


def _records(file: BinaryIO, report: Report, *, middle: bool = False) -> Iterator[Checkpoint]:
    """`middle`: the file was entered there. The rest of a record is no problem then, and nobody knows line numbers."""

    def problem(block: _Block, what: str, *, torn: bool = False) -> None:
        report(Problem(0 if middle else block.line, what, torn))

    head, inside = None, middle
    for block in _blocks(file):
        if not block.ended:
            problem(head or block, "the last record is torn: it was being written when the machine stopped", torn=True)
            return
        if not block.is_signatures:
            if head is not None:
                problem(head, "a text without signatures", torn=head.given_up)
            head = block
        elif head is not None:
            if (found := _parsed(head, block, problem)) is not None:
                yield found
            head = None
        elif not inside:
            problem(block, "signatures without a text")
        inside = False
    if head is not None:
        problem(head, "the last record is torn: it has no signatures", torn=True)


def _parsed(text: _Block, signatures: _Block, problem: Callable[..., object]) -> Checkpoint | None:
    try:
        found = parse((text.data + b"\n" + signatures.data).decode())
        # The start of a line in base64 may well be a line. Nobody forged it: it is torn.
        if len(found.signatures[-1].blob) < SIGNATURE_BYTES:
            raise NoteError("its last signature is torn")
        return found
    except (NoteError, UnicodeDecodeError) as error:
        problem(text, f"not a checkpoint: {error}", torn=signatures.given_up)
        return None


@dataclass(slots=True)
class _Block:
    """Lines up to an empty one. `ended` if there was one, `given_up` if there was another: whoever wrote next had found
    it torn. `data` with all line ends but cut where it is far too long: then it does not parse."""

    line: int
    data: bytes = b""
    ended: bool = False
    given_up: bool = False

    @property
    def is_signatures(self) -> bool:
        # Torn within its first bytes it is one as well.
        return self.data.startswith(_SIGNATURE) or _SIGNATURE.startswith(self.data.rstrip(b"\n"))


def _blocks(file: BinaryIO) -> Iterator[_Block]:
    number, block = 0, None
    whole = True  # whether the next piece begins a line
    while piece := file.readline(NOTE_BYTES_MAX):
        number += whole
        if whole and piece == b"\n":
            if block is not None:
                block.given_up, block.ended = block.ended, True
        else:
            if block is not None and block.ended:
                yield block
                block = None
            block = block or _Block(number)
            if len(block.data) <= NOTE_BYTES_MAX:
                block.data += piece
        whole = piece.endswith(b"\n")
    if block is not None:
        yield block


def _skip_block(file: BinaryIO) -> None:
    whole = False
    while piece := file.readline(NOTE_BYTES_MAX):
        if whole and piece == b"\n":
            return
        whole = piece.endswith(b"\n")


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags | os.O_CREAT, 0o600), True


def _separator(descriptor: int, size: int) -> bytes:
    """What ends a torn record, so that the next one is not taken for its rest, nor it for a forgery."""
    if size == 0:
        return b""
    tail = os.pread(descriptor, NOTE_BYTES_MAX, max(0, size - NOTE_BYTES_MAX))
    if not tail.endswith(b"\n\n"):
        return b"\n\n\n"
    last = tail.rstrip(b"\n").rpartition(b"\n\n")[2]
    return b"" if last.startswith(_SIGNATURE) else b"\n"


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _warn(path: Path) -> Report:
    def report(problem: Problem) -> None:
        log.warning("the file of checkpoints is damaged", path=str(path), line=problem.line or None, what=problem.what)

    return report
