"""`python -m scripts.tortures.failpoints NAME`: `relay serve`, which kills itself at one chosen place.

Nothing of this is in the relay. Its functions are wrapped from outside before it starts; a wrapper looks for a file
`armed` in the working directory, and at the call whose number stands in there the process sends itself SIGKILL, just
before or just after the work is done. What it then leaves is what a loss of power leaves of a process: whatever was in
the memory of the kernel or of PostgreSQL stays. The file `hit` says that it was this, and nothing else, that ended it.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

ARMED, HIT = Path("armed"), Path("hit")

_CONNECTION = "relay.asyncpg_trio.connection:Connection"
_STATEMENT = tuple(f"{_CONNECTION}.{verb}" for verb in ("execute", "fetch", "fetchrow", "fetchval"))
_COMMIT = (f"{_CONNECTION}.command_uninterrupted",)
_COMMIT_TASK = "relay.ingest.commit:CommitTask.run"
_EFFECTS = "relay.ingest.effects:EffectWorker.run"
_AUDIT = "relay.audit.worker:AuditWorker.run"


@dataclass(frozen=True, slots=True)
class Failpoint:
    """`targets` are functions, as module:path. `text`: what the first argument must hold, such as a statement.
    `inside`: the function that the task must have entered. `needs`: what must happen for the place to be reached: load,
    a stop with a database that is stuck, or a start after such a stop."""

    moment: Literal["before", "after"]
    targets: tuple[str, ...]
    text: str = ""
    inside: str = ""
    needs: Literal["load", "stuck stop", "spool"] = "load"


FAILPOINTS = {
    "batch of events, before the statement": Failpoint("before", _STATEMENT, "INSERT INTO audit_outbox", _COMMIT_TASK),
    "batch of events, after the statement": Failpoint("after", _STATEMENT, "INSERT INTO audit_outbox", _COMMIT_TASK),
    "events, before COMMIT": Failpoint("before", _COMMIT, "COMMIT", _COMMIT_TASK),
    "events, after COMMIT": Failpoint("after", _COMMIT, "COMMIT", _COMMIT_TASK),
    "effect, before the outbox": Failpoint("before", _STATEMENT, "INSERT INTO audit_outbox", _EFFECTS),
    "effect, before COMMIT": Failpoint("before", _COMMIT, "COMMIT", _EFFECTS),
    "effect, after COMMIT": Failpoint("after", _COMMIT, "COMMIT", _EFFECTS),
    "after the OK": Failpoint("after", ("relay.fanout.writer:FrameWriter._write",), '["OK"'),
    "batch, after the lock": Failpoint("after", _STATEMENT, "pg_advisory_xact_lock", _AUDIT),
    "batch, after the head": Failpoint("after", ("relay.audit.log:read_head",), inside=_AUDIT),
    "batch, after the take": Failpoint("after", _STATEMENT, "DELETE FROM audit_outbox", _AUDIT),
    "batch, after the insert": Failpoint("after", ("relay.audit.log:insert_rows",), inside=_AUDIT),
    "batch, after COMMIT": Failpoint("after", _COMMIT, "COMMIT", _AUDIT),
    "checkpoint, after signing": Failpoint("after", ("relay.audit.note:sign",)),
    "checkpoint, after the row": Failpoint("after", ("relay.audit.checkpoints:insert",)),
    "checkpoint, before the file": Failpoint("before", ("relay.audit.checkpoint_file:append",)),
    "checkpoint, after the file": Failpoint("after", ("relay.audit.checkpoint_file:append",)),
    "checkpoint, published": Failpoint("before", ("relay.audit.checkpoints:note_event",)),
    "spool, after the write": Failpoint("after", ("relay.audit.spool_file:_write",), needs="stuck stop"),
    "spool, after fsync": Failpoint("after", ("relay.audit.spool_file:append",), needs="stuck stop"),
    "spool, before the replay": Failpoint("before", ("relay.audit.spool:_store",), needs="spool"),
    "spool, after the replay": Failpoint("after", ("relay.audit.spool:_store",), needs="spool"),
}

_inside: ContextVar[frozenset[str]] = ContextVar("inside", default=frozenset())


def die_at(failpoint: Failpoint) -> None:
    """Wraps what has to be wrapped, in every module that has it by name."""
    import_module("relay.assembly")
    if failpoint.inside:
        _replace(failpoint.inside, lambda whole: _entered(whole, failpoint.inside))
    for target in failpoint.targets:
        _replace(target, lambda whole: _deadly(whole, failpoint))


def _replace(target: str, wrapped: Callable[[Any], Any]) -> None:
    module_name, path = target.split(":")
    owner: Any = import_module(module_name)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    whole = getattr(owner, name)
    new = wrapped(whole)
    setattr(owner, name, new)
    for module in list(sys.modules.values()):
        if module.__name__.startswith("relay.") and getattr(module, name, None) is whole:
            setattr(module, name, new)


def _entered(whole: Any, name: str) -> Any:
    @wraps(whole)
    async def enter(*arguments: Any, **named: Any) -> Any:
        token = _inside.set(_inside.get() | {name})
        try:
            return await whole(*arguments, **named)
        finally:
            _inside.reset(token)

    return enter


def _deadly(whole: Any, failpoint: Failpoint) -> Any:
    def is_here(arguments: tuple[Any, ...]) -> bool:
        if failpoint.inside and failpoint.inside not in _inside.get():
            return False
        return not failpoint.text or any(failpoint.text in _text(argument) for argument in arguments[:2])

    @wraps(whole)
    async def deadly(*arguments: Any, **named: Any) -> Any:
        if failpoint.moment == "before" and is_here(arguments):
            _call()
        result = await whole(*arguments, **named)
        if failpoint.moment == "after" and is_here(arguments):
            _call()
        return result

    @wraps(whole)
    def deadly_sync(*arguments: Any, **named: Any) -> Any:
        if failpoint.moment == "before" and is_here(arguments):
            _call()
        result = whole(*arguments, **named)
        if failpoint.moment == "after" and is_here(arguments):
            _call()
        return result

    return deadly if inspect.iscoroutinefunction(whole) else deadly_sync


def _text(argument: Any) -> str:
    if isinstance(argument, bytes | bytearray | memoryview):
        return bytes(argument).decode(errors="replace")
    return argument if isinstance(argument, str) else ""


_calls = 0


def _call() -> None:
    global _calls
    if not ARMED.exists():
        return
    _calls += 1
    if _calls >= int(ARMED.read_text() or "1"):
        HIT.touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from relay.cli.main import main

    die_at(FAILPOINTS[sys.argv[1]])
    main(["serve"])
