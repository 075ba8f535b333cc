"""Whom PostgreSQL runs as.

PostgreSQL refuses to run as root. Where the relay is root (containers, mostly) its children switch to an unprivileged
account by setuid; the relay itself stays what it is. No account is ever created and no permission of a directory that
is not ours is ever changed: both are the operator's.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from relay.embedded.failures import AccountMissing, DataDirUnusable

_CHOICES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """An account of this machine; `name` is the number where the number has no name."""

    name: str
    uid: int
    gid: int


def server_account(cluster: Path) -> Account | None:
    """The account for the server of this cluster; None means "as ourselves".

    As root, the owner of an existing cluster goes before all others: PostgreSQL serves only what it owns, and the
    account `postgres` may have appeared on the machine after the cluster was made by `nobody`.

    Raises AccountMissing as root without any such account, DataDirUnusable if we are not the owner and not root.
    """
    try:
        found = cluster.stat()
    except (FileNotFoundError, NotADirectoryError):
        owner = None
    except PermissionError as error:
        raise DataDirUnusable(f"{cluster} cannot be read by this account: {error.strerror}.") from error
    else:
        owner = _account_of(found)
    if os.geteuid() != 0:
        if owner is not None and owner.uid != os.geteuid():
            raise DataDirUnusable(
                f"The database in {cluster} belongs to the account {owner.name}. Run the relay as root or as that "
                f"account, or use another data directory."
            )
        return None
    if owner is not None and owner.uid != 0:
        return owner
    return _unprivileged()


def _account_of(found: os.stat_result) -> Account:
    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:
        return Account(str(found.st_uid), found.st_uid, found.st_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _unprivileged() -> Account:
    for name in _CHOICES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise AccountMissing(
        "PostgreSQL does not run as root, and this machine has neither an account `postgres` nor `nobody`. Run the "
        "relay as an ordinary user, or create one: useradd --system postgres"
    )


def give(path: Path, account: Account | None) -> None:
    """Make a directory of ours the account's, for it alone."""
    path.chmod(0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)
