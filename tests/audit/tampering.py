"""A log with checkpoints as an intruder finds it, and everything that he could do to it.

`Log` holds rows, checkpoint notes (those in the database, and those that somebody else has kept) and stored nodes. A
`Tampering` changes it and says what must be found. The same operations run in memory, by the thousand, and through
PostgreSQL (`as_sql` in test_tamper.py writes a changed log over the stored one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from random import Random

from relay.audit import note
from relay.audit.anchors import DATABASE, Anchors
from relay.audit.chain import GENESIS, ChainedEntry, Head, link, recompute
from relay.audit.covering import STORED_LEVELS
from relay.audit.entry import Entry
from relay.audit.note import Checkpoint
from relay.audit.report import VerifyReport
from relay.audit.tree import Frontier, leaf_hash, root_of
from relay.audit.verification import Start, Verification
from relay.audit.walk import FaultKind
from relay.nostr.keys import SecretKey
from tests.audit.memory import entry

KEY = SecretKey.from_hex("01" * 32)
STRANGER = SecretKey.from_hex("02" * 32)
ORIGIN = note.origin_of(KEY.public_hex)
KEPT = "kept elsewhere"

Nodes = dict[tuple[int, int], bytes]
Expected = set[tuple[FaultKind, int]]


@dataclass
class Log:
    """`stored` are the checkpoints in the database, `kept` those that are out of the intruder's reach."""

    rows: list[ChainedEntry]
    stored: list[Checkpoint]
    kept: list[Checkpoint]
    nodes: Nodes
    signed: list[int] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """The sizes of all checkpoints that still speak, smallest first."""
        return sorted({each.size for each in (*self.stored, *self.kept)})


def checkpoint(rows: list[ChainedEntry], size: int, key: SecretKey = KEY) -> Checkpoint:
    return note.sign(ORIGIN, size, root_of([leaf_hash(row.hash) for row in rows[:size]]), key)


def nodes_of(rows: list[ChainedEntry]) -> Nodes:
    leaves, found, level = [leaf_hash(row.hash) for row in rows], {}, STORED_LEVELS
    while width := len(leaves) >> level:
        for index in range(width):
            found[level, index] = root_of(leaves[index << level : index + 1 << level])
        level += STORED_LEVELS
    return found


def log_of(count: int, sizes: list[int], kept: list[int]) -> Log:
    rows = link(GENESIS, [entry(number) for number in range(1, count + 1)])
    return Log(
        rows,
        [checkpoint(rows, size) for size in sizes],
        [checkpoint(rows, size) for size in kept],
        {place: node for place, node in nodes_of(rows).items() if place[1] + 1 << place[0] <= max(sizes, default=0)},
        sizes,
    )


def verified(log: Log, window: int = 300) -> VerifyReport:
    """As `verify` does it, without a database."""
    with Anchors(KEY.public_hex) as anchors:
        for each in log.stored:
            anchors.add(DATABASE, each, ours=True)
        for each in log.kept:
            anchors.add(KEPT, each)
        rows = sorted(log.rows, key=lambda row: row.seq)
        head = rows[-1].head if rows else GENESIS
        verification = Verification(Start(GENESIS, "genesis", frontier=Frontier()), anchors)
        for after in range(0, head.seq, window):
            upto = min(after + window, head.seq)
            verification.window([row for row in rows if after < row.seq <= upto], after, upto, log.nodes)
        return verification.report(first=1, last=head.seq, head_seq=head.seq, head_hash=head.hash, outbox_rows=0)


# -- what an intruder does -------------------------------------------------------------------------------------------


def other_entry(one: Entry, random: Random) -> tuple[str, Entry]:
    """`one` with one field changed, and which."""
    name = random.choice([each.name for each in fields(Entry)])
    value = getattr(one, name)
    other = {
        "uuid": f"00000000-0000-4000-9000-{random.getrandbits(48):012x}",
        "time_us": one.time_us + random.choice([-1, 1, 10**6]),
        "action": random.choice(["event_deleted", "event_created "]),
        "actor": "" if value is None else None,
        "event_id": "" if value is None else None,
        "kind": 0 if value is None else None,
        "channel_id": "00000000-0000-0000-0000-000000000000" if value is None else None,
        "metadata": random.choice(["{ }", "null", '{"a":1}']),
    }[name]
    assert other != value
    return name, replace(one, **{name: other})


def _rewritten(log: Log, seq: int) -> Expected:
    """What must be said if from `seq` on the entries are others, well chained, down to their end."""
    covering = [size for size in log.sizes if size >= seq]
    if not covering:
        return set()
    return {(FaultKind.REWRITTEN, max([size for size in log.sizes if size < seq], default=0) + 1)}


def _rehash(log: Log, start: int) -> None:
    head = log.rows[start - 1].head if start else GENESIS
    log.rows[start:] = link(head, [row.entry for row in log.rows[start:]])


def change_field(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows))
    row = log.rows[place]
    log.rows[place] = replace(row, entry=other_entry(row.entry, random)[1])
    return {(FaultKind.HASH_MISMATCH, row.seq)}


def change_hash(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows))
    row = log.rows[place]
    log.rows[place] = replace(row, hash=random.randbytes(32))
    behind = {(FaultKind.BROKEN_LINK, row.seq + 1)} if place + 1 < len(log.rows) else set()
    return {(FaultKind.HASH_MISMATCH, row.seq)} | behind | _rewritten(log, row.seq)


def change_link(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows))
    row = log.rows[place]
    log.rows[place] = replace(row, prev_hash=random.randbytes(32))
    kind = FaultKind.BROKEN_LINK if place else FaultKind.BAD_GENESIS
    return {(kind, row.seq), (FaultKind.HASH_MISMATCH, row.seq)}


def change_with_fresh_hash(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows))
    row = log.rows[place]
    forged = replace(row, entry=other_entry(row.entry, random)[1])
    log.rows[place] = replace(forged, hash=recompute(forged))
    behind = {(FaultKind.BROKEN_LINK, row.seq + 1)} if place + 1 < len(log.rows) else set()
    return behind | _rewritten(log, row.seq)


def remove_row(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows) - 1)
    del log.rows[place]
    return {(FaultKind.GAP, place + 1)}


def remove_prefix(log: Log, random: Random) -> Expected:
    del log.rows[: random.randrange(1, len(log.rows))]
    return {(FaultKind.GAP, 1)}


def remove_tail(log: Log, random: Random) -> Expected:
    left = random.randrange(len(log.rows))
    del log.rows[left:]
    return {(FaultKind.TRUNCATED, left + 1)} if max(log.sizes, default=0) > left else set()


def remove_tail_and_go_on(log: Log, random: Random) -> Expected:
    """The log is cut and as many others are chained on: no place is empty."""
    left, count = random.randrange(len(log.rows)), len(log.rows)
    head = log.rows[left - 1].head if left else GENESIS
    log.rows[left:] = link(head, [entry(10**6 + number) for number in range(left, count)])
    return _rewritten(log, left + 1)


def swap(log: Log, random: Random) -> Expected:
    one, two = sorted(random.sample(range(len(log.rows)), 2))
    a, b = log.rows[one], log.rows[two]
    log.rows[one], log.rows[two] = replace(a, entry=b.entry), replace(b, entry=a.entry)
    return {(FaultKind.HASH_MISMATCH, a.seq), (FaultKind.HASH_MISMATCH, b.seq)}


def swap_and_rehash(log: Log, random: Random) -> Expected:
    one, two = sorted(random.sample(range(len(log.rows)), 2))
    a, b = log.rows[one], log.rows[two]
    log.rows[one], log.rows[two] = replace(a, entry=b.entry), replace(b, entry=a.entry)
    _rehash(log, one)
    return _rewritten(log, one + 1)


def insert_and_rehash(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows) + 1)
    head = log.rows[place - 1].head if place else GENESIS
    log.rows[place:] = link(head, [entry(10**6), *(row.entry for row in log.rows[place:])])
    return _rewritten(log, place + 1)


def remove_and_rehash(log: Log, random: Random) -> Expected:
    """One entry is taken out and the gap is closed."""
    place = random.randrange(len(log.rows) - 1)
    del log.rows[place]
    _rehash(log, place)
    found = _rewritten(replace_sizes(log, len(log.rows)), place + 1)
    return found | ({(FaultKind.TRUNCATED, len(log.rows) + 1)} if log.sizes[-1] > len(log.rows) else set())


def replace_sizes(log: Log, upto: int) -> Log:
    """The log with only those checkpoints that its rows reach."""
    return replace(
        log,
        stored=[each for each in log.stored if each.size <= upto],
        kept=[each for each in log.kept if each.size <= upto],
    )


def change_and_rehash(log: Log, random: Random) -> Expected:
    place = random.randrange(len(log.rows))
    row = log.rows[place]
    log.rows[place] = replace(row, entry=other_entry(row.entry, random)[1])
    _rehash(log, place)
    return _rewritten(log, place + 1)


def replace_all(log: Log, _: Random) -> Expected:
    log.rows = link(GENESIS, [entry(10**6 + row.seq) for row in log.rows])
    return _rewritten(log, 1)


def replace_all_and_sign_again(log: Log, _: Random) -> Expected:
    """With the relay's key in hand: the checkpoints in the database are made anew, and those kept elsewhere remain."""
    log.rows = link(GENESIS, [entry(10**6 + row.seq) for row in log.rows])
    log.nodes = nodes_of(log.rows)
    log.stored = [checkpoint(log.rows, each.size) for each in log.stored]
    newest = log.stored[-1].size
    # Every older signature contradicts a new one: that of its own size, or the newest, which does not continue it.
    found: Expected = {(FaultKind.CONTRADICTION, each.size) for each in log.kept if each.size <= newest}
    above = [each.size for each in log.kept if each.size > newest]
    return found | ({(FaultKind.REWRITTEN, newest + 1)} if above else set())


def sign_by_a_stranger(log: Log, random: Random) -> Expected:
    log.rows = link(GENESIS, [entry(10**6 + row.seq) for row in log.rows])
    log.stored = [checkpoint(log.rows, each.size, STRANGER) for each in log.stored]
    forged: Expected = {(FaultKind.BAD_CHECKPOINT, each.size) for each in log.stored}
    log_of_kept = replace(log, stored=[])
    return forged | (_rewritten(log_of_kept, 1) if log.kept else set())


def edit_checkpoint(log: Log, random: Random) -> Expected:
    """Another root or size over the old signature."""
    place = random.randrange(len(log.stored))
    one = log.stored[place]
    forged = replace(one, text=f"{ORIGIN}\n{one.size}\n{checkpoint([], 0).text.splitlines()[2]}\n")
    log.stored[place] = note.parse(forged.note)
    return {(FaultKind.BAD_CHECKPOINT, one.size)}


def edit_node(log: Log, random: Random) -> Expected:
    level, index = random.choice(sorted(log.nodes))
    log.nodes[level, index] = random.randbytes(32)
    return {(FaultKind.TREE_NODE, (index << level) + 1)}


def duplicate_row(log: Log, random: Random) -> Expected:
    row = random.choice(log.rows)
    log.rows.insert(row.seq, row)
    return {(FaultKind.DUPLICATE, row.seq)}


Tampering = Callable[[Log, Random], Expected]

ALL: tuple[Tampering, ...] = (
    change_field, change_hash, change_link, change_with_fresh_hash, remove_row, remove_prefix, remove_tail,
    remove_tail_and_go_on, swap, swap_and_rehash, insert_and_rehash, remove_and_rehash, change_and_rehash, replace_all,
    replace_all_and_sign_again, sign_by_a_stranger, edit_checkpoint, edit_node, duplicate_row,
)  # fmt: skip

__all__ = ["ALL", "KEPT", "KEY", "ORIGIN", "Head", "Log", "checkpoint", "log_of", "nodes_of", "verified"]
