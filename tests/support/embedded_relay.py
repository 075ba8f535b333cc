"""As much of a relay's process as the embedded server sees, to be killed by tests: `python embedded_relay.py DATA_DIR`.

Prints one line of JSON when the server is ready ({"pid", "dsn", "notes"}) or when it failed ({"error", "text"}), then
serves until its standard input ends. With a second argument it becomes that account first, after the imports, since
the interpreter may lie where only root can read it. A third argument is the directory of the programs.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 -- imported late by the standard library otherwise, when it is out of reach
import json
import os
import pwd
import sys
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from relay.embedded import EmbeddedError, embedded_postgres  # noqa: E402


def become(name: str) -> None:
    account = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


async def serve(data_dir: Path, binaries: Path | None) -> None:
    try:
        async with embedded_postgres(data_dir, binaries=binaries) as server, trio.open_nursery() as nursery:
            await nursery.start(server.supervise)
            print(json.dumps({"pid": server.pid, "dsn": server.dsn, "notes": server.notes}), flush=True)
            await trio.lowlevel.wait_readable(0)
            nursery.cancel_scope.cancel()
    except EmbeddedError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        become(sys.argv[2])
    trio.run(serve, Path(sys.argv[1]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
