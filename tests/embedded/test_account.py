from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from relay.embedded import AccountMissing, account
from tests.embedded.conftest import needs_root


@needs_root
def test_root_takes_the_first_account_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(account, "_CHOICES", ("no-such-account", "nobody", "root"))
    chosen = account.server_account(tmp_path / "none yet")
    assert chosen == account.Account("nobody", nobody.pw_uid, nobody.pw_gid)


@needs_root
def test_root_without_any_account_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_CHOICES", ("no-such-account",))
    with pytest.raises(AccountMissing, match="useradd --system postgres"):
        account.server_account(tmp_path)


@needs_root
def test_owner_of_an_existing_cluster_goes_before_every_choice(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54322)
    assert account.server_account(tmp_path) == account.Account("54321", 54321, 54322)
    os.chown(tmp_path, 65534, 0)
    chosen = account.server_account(tmp_path)
    assert chosen is not None
    assert chosen.gid == pwd.getpwnam("nobody").pw_gid  # the account's group, whatever group the directory has


@needs_root
def test_root_owned_directory_is_nobodys_cluster(tmp_path: Path) -> None:
    chosen = account.server_account(tmp_path)
    assert chosen is not None
    assert chosen.uid != 0


@needs_root
def test_give_makes_it_the_accounts_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    account.give(tmp_path, account.Account("somebody", 54321, 54322))
    found = tmp_path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (54321, 54322, 0o700)
