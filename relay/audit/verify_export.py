"""Verifying an export: the same walk as over the database, over a file, with no relay and no database at hand.

In: the path of an export (`export.py`) and the checkpoints to hold it against, of which one is in its last line. Out: a
`VerifyReport`. What the file says of itself (its header) is no evidence; the rows are, and what was signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import orjson

from relay.audit import export
from relay.audit.anchors import Anchors
from relay.audit.chain import GENESIS, ChainedEntry, Head
from relay.audit.report import VerifyReport
from relay.audit.tree import Frontier
from relay.audit.verification import Start, Verification

WINDOW_ROWS = 2_048
# The last line is a note and little more; in JSON each of its characters may take six.
_END_BYTES = 1 << 20

Progress = Callable[[int, int], object]


def relay_of(path: Path) -> str | None:
    """The public key (hex) that an export says it is of; None where no relay had ever started.

    Raises:
        AuditError: it is not an export.
        OSError: it cannot be read.
    """
    with export.opened(path) as reader:
        return reader.header.relay


def add_note(path: Path, anchors: Anchors) -> None:
    """Give `anchors` the checkpoint of the file's last line, if it has one. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        lines = file.read().splitlines()
    try:
        text = orjson.loads(lines[-1]).get("checkpoint") if lines else None
    except (orjson.JSONDecodeError, AttributeError):
        return  # the reader will say where the file is cut
    if isinstance(text, str):
        anchors.add_note(path.name, text)


def verify_export(path: Path, anchors: Anchors | None, progress: Progress | None = None) -> VerifyReport:
    """Recompute every row of an export. Blocks; constant memory.

    Raises:
        AuditError: it is not a whole export; says in which line.
        OSError: it cannot be read.
    """
    with export.opened(path) as reader:
        header = reader.header
        verification = Verification(_start(header), anchors)
        after = header.first - 1
        for rows in _windows(iter(reader)):
            upto = max(after, max(row.seq for row in rows))
            verification.window(rows, after, upto)
            after = upto
            if progress is not None:
                progress(verification.walk.rows, header.last - header.first + 1)
        walk = verification.walk
        last = max(header.last, walk.head.seq)
        if walk.head.seq < last:
            walk.missing(walk.head.seq + 1, last)
    if anchors is not None and (largest := anchors.largest()) is not None and largest.size > last:
        anchors.warn(f"the export ends at {last}; a checkpoint was signed for {largest.size} entries")
    end = walk.head.hash if walk.rows else bytes.fromhex(header.head_hash)
    return verification.report(
        first=header.first, last=last, head_seq=last, head_hash=end, outbox_rows=0, head_is_end=False
    )


def _start(header: export.Header) -> Start:
    if header.first == 1:
        return Start(GENESIS, "genesis", frontier=Frontier())
    before = header.first - 1
    frontier = None if header.frontier is None else Frontier(before, header.frontier)
    return Start(Head(before, GENESIS.hash), "none", linked=False, frontier=frontier)


def _windows(rows: Iterator[ChainedEntry]) -> Iterator[list[ChainedEntry]]:
    while window := list(islice(rows, WINDOW_ROWS)):
        yield window
