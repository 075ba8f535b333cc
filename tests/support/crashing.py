"""`python -m tests.support.crashing NAME`: `relay serve`, with one part that fails as soon as a file `armed` is there.

The fault is raised inside the part's own code, at a moment when it does most harm, by what the part does next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.audit.worker import AuditWorker
from relay.cli.main import main
from relay.embedded.server import Server
from relay.fanout.audiences import Audiences
from relay.fanout.hub import Hub
from relay.ingest.commit import CommitTask
from relay.ingest.effects import EffectWorker
from relay.websocket.session import Session

FAULT = "injected fault"
PLACES: dict[str, tuple[type, str]] = {
    "commit task": (CommitTask, "_after_commit"),  # committed, and nobody knows yet
    "effect worker": (EffectWorker, "_tell"),
    "fan-out": (Hub, "_match"),
    "audit worker": (AuditWorker, "_chain_batch"),
    "audience loader": (Audiences, "_load_all"),
    "heartbeat": (Session, "tick"),
    "embedded PostgreSQL": (Server, "launch"),  # asked to start again after a crash
}


def break_down(owner: type, name: str) -> None:
    """Makes the method raise once the file `armed` exists in the working directory."""
    whole: Callable[..., Any] = getattr(owner, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if Path("armed").exists():
            raise RuntimeError(FAULT)
        return whole(*arguments, **named)

    setattr(owner, name, broken)


if __name__ == "__main__":
    break_down(*PLACES[sys.argv[1]])
    main(["serve"])
