"""Other relays to put beside ours: `python -m scripts.benchmarks.peers NAME [PORT]` runs one until it is interrupted.

nostr-sdk: the local relay of rust-nostr, in memory, from the wheel that the tests use anyway.
nostr-relay-js: @nostr-relay/core over `ws` with its SQLite repository; npm installs it on first use, into a directory
of its own.

Strfry and other relays that are no package of Python or JavaScript are built by whoever compares them, and given to
`scripts/bench compare` by their address.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

_JS = """
import { NostrRelay } from '@nostr-relay/core'
import { Validator } from '@nostr-relay/validator'
import { EventRepositorySqlite } from '@nostr-relay/event-repository-sqlite'
import { WebSocketServer } from 'ws'
import Database from 'better-sqlite3'

const events = new EventRepositorySqlite(new Database(process.argv[3]))
await events.init()
const relay = new NostrRelay(events)
const validator = new Validator()
new WebSocketServer({ port: Number(process.argv[2]), host: '127.0.0.1' }).on('connection', ws => {
  relay.handleConnection(ws)
  ws.on('message', async data => {
    try { await relay.handleMessage(ws, await validator.validateIncomingMessage(data)) }
    catch (error) { if (error instanceof Error) ws.send(JSON.stringify(['NOTICE', error.message])) }
  })
  ws.on('close', () => relay.handleDisconnect(ws))
})
"""
_JS_PACKAGES = (
    "@nostr-relay/core@0.0.40", "@nostr-relay/validator@0.0.40", "@nostr-relay/event-repository-sqlite@0.0.40",
    "ws@8", "better-sqlite3@11",
)  # fmt: skip


async def _nostr_sdk(port: int) -> None:
    from nostr_sdk import LocalRelayBuilder, RateLimit

    limit = RateLimit(max_reqs=1_000_000, notes_per_minute=100_000_000)
    relay = LocalRelayBuilder().addr("127.0.0.1").port(port).rate_limit(limit).max_filter_limit(10_000).build()
    await relay.run()
    print(f"ws://127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


def _nostr_relay_js(port: int) -> None:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "relay-bench" / "nostr-relay-js"
    if not (home / "node_modules").exists():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *_JS_PACKAGES], cwd=home, check=True)
    (home / "relay.mjs").write_text(_JS)
    for old in home.glob("events.db*"):
        old.unlink()
    print(f"ws://127.0.0.1:{port}", flush=True)
    os.chdir(home)
    # In our place, so that whoever started us measures and ends the relay itself.
    os.execvp("node", ["node", "relay.mjs", str(port), "events.db"])


def main(name: str, port: int) -> None:
    if name == "nostr-sdk":
        asyncio.run(_nostr_sdk(port))
    elif name == "nostr-relay-js":
        _nostr_relay_js(port)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "", int(sys.argv[2]) if len(sys.argv) > 2 else 7700)
