"""The private names of asyncpg that the driver rests on, and its face to the outside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import relay.asyncpg_trio
from relay.asyncpg_trio import Connection, driver, errors


def test_the_installed_asyncpg_still_has_every_private_name_we_rest_on():
    broken = driver.broken_contract()
    assert not broken, "relay/asyncpg_trio cannot drive this asyncpg:\n" + "\n".join(broken)


def test_a_missing_name_is_reported_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "CONTRACT", [*driver.CONTRACT, (driver.protocol.Protocol, "telepathy")])
    assert [text for text in driver.broken_contract() if "Protocol.telepathy" in text]


def test_a_changed_signature_is_reported_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver.asyncpg_connection._StatementCache, "get", lambda self, key: None)
    assert any("'key'" in text for text in driver.broken_contract())


def test_private_names_of_asyncpg_are_touched_in_the_driver_module_only():
    folder = Path(relay.asyncpg_trio.__file__).parent
    importers = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(name.split(".")[0] == "asyncpg" for name in names):
                importers.add(file.name)
    assert importers == {"driver.py", "errors.py"}


def test_every_public_error_is_reachable_and_the_ambiguous_one_cannot_be_retried_by_accident():
    assert all(hasattr(errors, name) for name in errors.__all__)
    assert not issubclass(errors.CommitOutcomeUnknown, (errors.ConnectionLost, errors.PostgresError))
    assert issubclass(errors.ConnectFailed, errors.ConnectionLost)


def test_what_asyncpg_builds_on_asyncio_is_not_offered():
    for name in ("executemany", "cursor", "prepare", "add_listener", "reset"):
        assert not hasattr(Connection, name)
