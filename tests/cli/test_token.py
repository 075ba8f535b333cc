"""`relay token`: what is printed, what is stored, what is refused, and that it works on the relay that runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import trio
from typer.testing import CliRunner, Result

from relay.cli.token import token_app
from relay.errors import MigrationError, Refused
from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from tests.support.http import new_key, running
from tests.support.postgres import PostgresServer

Run = Callable[..., Result]


@pytest.fixture
def run(migrated_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", migrated_dsn)
    return lambda *arguments: CliRunner().invoke(token_app, list(arguments))


def value(output: str, name: str) -> str:
    found = re.search(rf"^{name} +(.*)$", output, re.MULTILINE)
    assert found is not None, output
    return found.group(1)


def test_mint_prints_everything_once_and_keeps_the_hash(
    run: Run, migrated_dsn: str, postgres_server: PostgresServer
) -> None:
    scopes = "messages:read, messages:write,messages:read"
    done = run("mint", "--name", "bot", "--scopes", scopes, "--expires-days", "9")
    assert done.exit_code == 0, done.output
    text = value(done.stdout, "token")
    assert re.fullmatch(r"sprout_[0-9a-f]{64}", text)
    _, secret = nip19.decode(value(done.stdout, "nsec"))
    pubkey = SecretKey.from_hex(str(secret)).public_hex
    assert value(done.stdout, "pubkey") == f"{pubkey} ({nip19.encode_npub(pubkey)})"
    assert value(done.stdout, "scopes") == "messages:read,messages:write"
    database = urlsplit(migrated_dsn).path[1:]
    row = postgres_server.psql(
        database,
        "SELECT id, encode(token_hash, 'hex'), encode(owner_pubkey, 'hex'), name, scopes, channel_ids IS NULL, "
        "expires_at - created_at FROM api_tokens",
    )
    expected = [value(done.stdout, "id"), sha256(text.encode()).hexdigest(), pubkey, "bot",
                "{messages:read,messages:write}", "t", "9 days"]  # fmt: skip
    assert row.split("|") == expected
    dump = postgres_server.psql(database, "SELECT * FROM api_tokens; SELECT * FROM audit_outbox")
    assert "token_created" in dump
    assert text not in dump
    assert str(secret) not in dump
    assert text not in run("list", "--all").output


def test_mint_for_a_key_that_exists(run: Run) -> None:
    key = new_key()
    for spelling in (key.public_hex, nip19.encode_npub(key.public_hex)):
        done = run("mint", "--name", "n", "--scopes", "channels:read", "--pubkey", spelling)
        assert done.exit_code == 0, done.output
        assert value(done.stdout, "pubkey").startswith(key.public_hex)
        assert value(done.stdout, "expires") == "never"
        assert "nsec" not in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--name", "", "--scopes", "messages:read"], "printable bytes"),
        (["--name", "ü" * 51, "--scopes", "messages:read"], "printable bytes"),
        (["--name", "a\x1b[2J", "--scopes", "messages:read"], "printable bytes"),
        (["--name", "n", "--scopes", "messages:read,messages:all"], "unknown: messages:all"),
        (["--name", "n", "--scopes", " , "], "must not be empty"),
        (["--name", "n", "--scopes", "messages:read", "--pubkey", "00" * 32], "must be a public key"),
        (["--name", "n", "--scopes", "messages:read", "--owner-pubkey", "x"], "must be a public key"),
        (["--name", "n", "--scopes", "messages:read", "--channels", "x"], "comma list of UUIDs"),
        (["--name", "n", "--scopes", "messages:read", "--expires-days", "0"], "--expires-days"),
    ],
)
def test_wrong_usage(run: Run, options: list[str], sentence: str) -> None:
    done = run("mint", *options)
    assert done.exit_code == 2
    # The error is drawn in a box of the terminal's width.
    assert sentence in " ".join(re.sub(r"[│╭╮╰╯─\n]", " ", done.output).split())
    assert len(run("list").output.splitlines()) == 1


def test_what_the_database_refuses_leaves_nothing(run: Run) -> None:
    owner, other, agent = (new_key().public_hex for _ in range(3))
    four = "users:read,messages:read,messages:write,channels:read"
    basic = ["mint", "--name", "n", "--pubkey", agent, "--scopes"]

    def refused(*options: str) -> str:
        done = run(*basic, *options)
        assert isinstance(done.exception, Refused), done.output
        return str(done.exception)

    assert refused("messages:read", "--owner-pubkey", owner) == (
        "an agent that has an owner also needs users:read, messages:write, channels:read"
    )
    unknown = str(uuid4())
    assert refused(four, "--channels", unknown) == f"channel not found: {unknown}"
    assert len(run("list", "--all").output.splitlines()) == 1

    assert run(*basic, four, "--owner-pubkey", owner).exit_code == 0
    assert run(*basic, four, "--owner-pubkey", owner).exit_code == 0
    assert refused(four, "--owner-pubkey", other) == "this agent already has a different owner"
    # Owned since before, so the rule holds without the option too.
    assert refused("messages:read").startswith("an agent that has an owner")
    assert len(run("list", "--all").output.splitlines()) == 3


def test_list_and_revoke(run: Run, migrated_dsn: str, postgres_server: PostgresServer) -> None:
    first = value(run("mint", "--name", "a" * 30, "--scopes", "messages:read").stdout, "id")
    second = value(run("mint", "--name", "second", "--scopes", "messages:read").stdout, "id")
    database = urlsplit(migrated_dsn).path[1:]
    postgres_server.psql(database, f"UPDATE api_tokens SET name = E'x\\u001b[2Jy' WHERE id = '{second}'")
    lines = run("list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["ID", second, first]
    assert "x?[2Jy" in lines[1]
    assert "a" * 19 + "…" in lines[2]
    assert all("active" in line for line in lines[1:])

    assert run("revoke", first.upper()).output == "revoked\n"
    assert [line.split()[0] for line in run("list").output.splitlines()] == ["ID", second]
    assert [line.split()[5] for line in run("list", "--all").output.splitlines()[1:]] == ["active", "revoked"]
    assert str(run("revoke", first).exception) == "this token was revoked before"
    assert str(run("revoke", str(uuid4())).exception) == "there is no such token"
    assert run("revoke", "x").exit_code == 2
    actions = postgres_server.psql(database, "SELECT action FROM audit_outbox ORDER BY id").split()
    assert actions == ["token_created", "token_created", "token_revoked"]


def test_without_a_schema(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_dsn)
    for arguments in (["list"], ["mint", "--name", "n", "--scopes", "messages:read"], ["revoke", str(uuid4())]):
        done = CliRunner().invoke(token_app, arguments)
        assert isinstance(done.exception, MigrationError), done.output


async def test_on_the_relay_that_runs(run: Run, migrated_dsn: str) -> None:
    """Made and revoked by another process, and in force at once: nothing is remembered between two requests."""

    async def command(*arguments: str) -> Result:
        return await trio.to_thread.run_sync(lambda: run(*arguments))

    async with running(migrated_dsn) as rig:
        done = await command("mint", "--name", "n", "--scopes", "channels:read")
        text = value(done.stdout, "token")
        assert (await rig.get("/api/channels", token=text)).status == 200
        assert (await command("revoke", value(done.stdout, "id"))).exit_code == 0
        answer = await rig.get("/api/channels", token=text)
        assert (answer.status, answer.json) == (401, {"error": "token_revoked"})
