"""`python -m scripts.tortures.server DIRECTORY`: PostgreSQL alone, durable as a relay's own, until standard input ends.

For what more than one relay uses, or what a relay reaches over a line that is not as short as usual. Says one line when
it is ready. Ends also with whoever has started it, since that ends its standard input.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from relay.embedded import cluster
from relay.embedded.server import embedded_postgres


@contextmanager
def postgres(directory: Path) -> Iterator[Path]:
    """A server on `directory` for the time of the context; yields the path of its socket."""
    command = [sys.executable, "-m", "scripts.tortures.server", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the server said why"
        try:
            yield cluster.socket_dir_of(directory) / f".s.PGSQL.{cluster.PORT}"
        finally:
            process.stdin.close()
            process.wait(30)


async def _serve(directory: Path) -> None:
    async with embedded_postgres(directory):
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]))
