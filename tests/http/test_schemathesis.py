"""schemathesis over `/openapi.json` of a real relay on a port of its own: every operation, in all phases.

No server error, no status, content type or body that the document does not have, and no route that lets anybody in who
shows a credential that is no good. The document is public, so this is also what anybody can do to a relay.

`RELAY_SCHEMATHESIS_EXAMPLES` makes it longer: that many examples of each operation in each phase (5 without it), with
another seed each time unless `RELAY_SCHEMATHESIS_SEED` says which.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import trio

from tests.e2e.document_client import Credential, DocumentClient, signed_by
from tests.support.core import ALICE, BOB, Person
from tests.support.launching import BIN, REPOSITORY, Launched, launched, reachable_dir
from tests.support.relay import fields

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("RELAY_SCHEMATHESIS_EXAMPLES", "5"))
SEED = os.environ.get("RELAY_SCHEMATHESIS_SEED", "1" if EXAMPLES == 5 else str(secrets.randbelow(10**9)))
SECONDS = 120 + 10 * EXAMPLES
# These two hold an API to "what the schema does not allow is refused, what it allows is taken": the contract demands
# that unknown keys are ignored, and much depends on what is stored.
NOT_OURS = "negative_data_rejection,positive_data_acceptance"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A relay that believes `X-Pubkey` and counts nobody's requests; nothing may have crashed in it in the end."""
    switches = {"SPROUT_DEV_X_PUBKEY": "true", "SPROUT_RATE_EVENTS": "0", "SPROUT_RATE_REQUESTS": "0"}
    with reachable_dir() as directory:
        async with launched("relay serve", directory, **switches) as running:
            await running.ready()
            yield running.url.replace("ws://", "http://")
            assert crashes(running) == []


def crashes(running: Launched) -> list[object]:
    return [line for line in running.log() if line.get("level") in ("error", "critical") or "text" in line]


def headers_of(person: Person) -> Credential:
    return lambda _method, _url, _body: ("x_pubkey", person.pubkey)


def prepare(address: str) -> tuple[dict[str, list[str]], str]:
    """Fills the relay a little. Parameter → values that exist, and a token of Bob's."""
    with DocumentClient(f"{address}/openapi.json") as client:
        alice = headers_of(ALICE)

        def send(kind: int, content: str, *tags: list[str]) -> str:
            event = ALICE.sign(kind, content, list(tags))
            status, body = client.call("submitEvent", alice, body=fields(event))
            assert (status, body["accepted"]) == (200, True), body
            return event.id

        channel_id = str(uuid.uuid4())
        in_it = ["h", channel_id]
        send(9007, "", in_it, ["name", "general"], ["visibility", "open"])
        said = send(9, "what is said", in_it, ["p", BOB.pubkey])
        answer = send(9, "what is answered", in_it, ["e", said, "", "reply"])
        send(7, "+", ["e", said])
        send(40100, "a canvas", in_it)
        note = send(1, "a note")
        send(0, orjson.dumps({"display_name": "Alice", "about": "1"}).decode())
        dm = client.call("openDm", alice, body={"pubkeys": [BOB.pubkey]})[1]["channel_id"]
        wanted = {"name": "known", "scopes": ["messages:read", "channels:read", "users:read"]}
        token = client.call("mintToken", signed_by(BOB), body=wanted)[1]["token"]
        token_id = client.call("mintToken", alice, body=wanted)[1]["id"]
    events = [said, answer, note]
    known = {"channel_id": [channel_id, dm], "event_id": events, "id": [*events, token_id]}
    return known | {"pubkey": [ALICE.pubkey, BOB.pubkey], "before_id": events, "q": ["said", "Alice", "*"]}, token


async def explore(address: str, known: dict[str, list[str]], directory: Path, *options: str) -> int:
    """Runs schemathesis; the number of requests that it made. Fails with its report."""
    done = await trio.run_process(
        [
            str(BIN / "schemathesis"), "run", f"{address}/openapi.json", "--seed", SEED, "--no-color",
            "--max-examples", str(EXAMPLES), "--continue-on-failure", "--generation-database", "none",
            "--warnings", "off", *options,
        ],
        check=False, capture_stdout=True, stderr=subprocess.STDOUT, cwd=directory,
        env=os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
            "RELAY_KNOWN": orjson.dumps(known).decode(),
            "PYTHONPATH": str(REPOSITORY),
        },
    )  # fmt: skip
    report = done.stdout.decode()
    if done.returncode != 0:
        pytest.fail(f"schemathesis ended with {done.returncode}:\n{report[-12_000:]}", pytrace=False)
    made = re.search(r"(\d+) generated", report)
    assert made is not None, report
    return int(made[1])


async def test_nothing_breaks_and_nothing_is_undescribed(address: str, tmp_path: Path):
    known, _ = await trio.to_thread.run_sync(prepare, address)
    with trio.fail_after(SECONDS):
        # What `ignored_auth` does, a bad credential of one kind beside a good one of another, is allowed.
        made = await explore(
            address, known, tmp_path, "-H", f"X-Pubkey: {ALICE.pubkey}", "--exclude-checks", f"{NOT_OURS},ignored_auth"
        )
    assert made > 500


async def test_a_bad_token_opens_nothing(address: str, tmp_path: Path):
    known, token = await trio.to_thread.run_sync(prepare, address)
    with trio.fail_after(SECONDS):
        # Without the operations that end the token itself.
        made = await explore(
            address, known, tmp_path, "-H", f"Authorization: Bearer {token}", "--phases", "fuzzing",
            "--exclude-checks", NOT_OURS, "--exclude-operation-id", "revokeAllTokens",
        )  # fmt: skip
    assert made > 100
