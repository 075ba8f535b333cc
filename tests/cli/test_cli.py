"""The `relay` command as a user types it: `--help`, the settings table, migrations, and errors without tracebacks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from relay import __version__, config
from relay.cli.config import BEGIN, END, markdown
from relay.cli.main import main
from tests.support.launching import REPOSITORY, reachable_dir


def relay(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "TERM": "dumb", "COLUMNS": "200", **environment},
    )  # fmt: skip


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(capsys, monkeypatch, tmp_path) -> Callable[..., Done]:
    """The same in this process, in an empty directory: a second less for each call."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        code = end.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def test_the_version_is_the_packages():
    assert relay("--version").stdout == f"relay {__version__}\n"


def test_serve_explains_its_most_used_options():
    text = relay("serve", "--help").stdout
    for option in ("--bind", "--data-dir", "--database-url", "--relay-url"):
        assert option in text
    assert "127.0.0.1:3000" in text


def test_wrong_settings_are_named_all_at_once_without_a_traceback():
    done = relay("serve", "--bind", "nowhere", RELAY_URL="http://x", SPROUT_SEND_BUFFER="many")
    assert done.returncode == 2
    for name in ("SPROUT_BIND_ADDR", "RELAY_URL", "SPROUT_SEND_BUFFER"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_answers_as_serve_would(here, tmp_path):
    assert here("config", "check").returncode == 0
    (tmp_path / "relay.toml").write_text('health_port = "never"\n')
    done = here("config", "check")
    assert (done.returncode, "SPROUT_HEALTH_PORT" in done.stderr) == (2, True)


def test_the_table_holds_every_setting_once():
    rows = re.findall(r"^\| `(\w+)` \|", markdown(), re.MULTILINE)
    assert rows == [variable for _, variable, _, _ in config.describe()]


def test_the_table_is_written_between_its_marks_and_compared(here, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert here("config", "docs", "--check", "--file", file).returncode == 1
    assert here("config", "docs", "--write", "--file", file).returncode == 0
    assert file.read_text() == f"before\n{BEGIN}\n{markdown()}\n{END}\nafter\n"
    assert here("config", "docs", "--check", "--file", file).returncode == 0


def test_a_document_without_marks_is_an_error_that_shows_them(here, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("nothing here\n")
    done = here("config", "docs", "--check", "--file", file)
    assert done.returncode == 1
    assert BEGIN in done.stderr


def test_migrations_are_listed_applied_and_listed_again(here, empty_dsn):
    before = here("migrate", "status", "--database-url", empty_dsn)
    assert before.returncode == 1
    assert "0001 core" in before.stdout
    assert "pending" in before.stdout
    up = here("migrate", "up", "--database-url", empty_dsn)
    assert up.returncode == 0
    assert "applied 0001_core" in up.stdout
    after = here("migrate", "status", "--database-url", empty_dsn)
    assert after.returncode == 0
    assert "pending" not in after.stdout


def test_a_command_starts_the_embedded_database_for_itself():
    with reachable_dir() as directory:
        done = relay("migrate", "up", "--data-dir", directory / "data")
        assert done.returncode == 0, done.stderr
        assert (directory / "data" / "postgres" / "PG_VERSION").exists()
        assert not (directory / "data" / "postgres" / "postmaster.pid").exists()


@pytest.mark.parametrize(
    ("url", "text"),
    [("postgresql://r@127.0.0.1:1/x", "did not answer within"), ("redis://x", "DATABASE_URL: invalid DSN")],
)
def test_a_database_that_cannot_be_used_is_explained(here, monkeypatch, url, text):
    monkeypatch.setenv("SPROUT_DATABASE_WAIT_SECONDS", "0.2")
    done = here("migrate", "status", "--database-url", url)
    assert done.returncode in (1, 2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://relay:hunter2/x@127.0.0.1/relay",
        "postgresql://relay:hunter2#x@127.0.0.1/relay",
        "postgresql://relay:7?hunter2@127.0.0.1/relay",
        "postgresql://relay:x[hunter2]y@127.0.0.1/relay",
        "postgresql://relay:hunter2,/@127.0.0.1/relay",
    ],
)
def test_a_password_that_makes_the_address_unreadable_is_not_shown(here, url):
    done = here("migrate", "status", "--database-url", url)
    assert done.returncode == 2
    assert "DATABASE_URL: " in done.stderr
    assert "%2F" in done.stderr  # what to do about it
    assert "hunter2" not in done.stderr + done.stdout
