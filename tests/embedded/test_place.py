from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relay.embedded import DataDirUnusable, choose_data_dir, embedded_postgres
from relay.embedded import place as placing
from relay.embedded.account import server_account
from tests.embedded.conftest import needs_root


@pytest.fixture
def locked(place: Path) -> Path:
    """A home that only root can enter."""
    (place / "home").mkdir(mode=0o700)
    return place / "home"


@needs_root
async def test_default_moves_where_the_account_can_go_and_says_so(locked: Path, place: Path) -> None:
    found, notes = await choose_data_dir(locked / "clone" / "relay-data", fallback=place / "lib" / "relay")
    assert found == place / "lib" / "relay"
    assert len(notes) == 1
    assert str(locked / "clone" / "relay-data") in notes[0]
    assert str(found) in notes[0]
    assert list(locked.iterdir()) == []
    async with embedded_postgres(found) as server:
        assert server.data_dir == found


@needs_root
async def test_directory_that_was_asked_for_is_refused_with_a_reason(locked: Path) -> None:
    with pytest.raises(DataDirUnusable, match=rf"cannot enter {locked}/data.*/var/lib/relay"):
        async with embedded_postgres(locked / "data"):
            pass


async def test_reachable_default_stays_and_lets_others_only_pass(place: Path) -> None:
    found, notes = await choose_data_dir(place / "a" / "b", fallback=place / "never")
    assert (found, notes) == (place / "a" / "b", [])
    assert not (place / "never").exists()
    expected = 0o711 if os.geteuid() == 0 else 0o700
    assert stat.S_IMODE(found.stat().st_mode) == expected
    found.chmod(0o755)
    assert await choose_data_dir(found) == (found, [])
    assert stat.S_IMODE(found.stat().st_mode) == 0o755  # what exists keeps the mode that somebody gave it


async def test_directory_that_cannot_be_made(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(DataDirUnusable, match="cannot be made"):
        await placing.enter_data_dir(place / "file" / "data")


@needs_root
async def test_the_account_itself_tries_to_enter(place: Path, locked: Path) -> None:
    account = server_account(place / "postgres")
    assert account is not None
    assert await placing.can_enter(place, account)
    assert not await placing.can_enter(locked, account)
    (place / "-P odd 'name").mkdir(mode=0o755)
    assert await placing.can_enter(place / "-P odd 'name", account)


async def test_symbolic_names_of_one_directory_are_one(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    found, _ = await choose_data_dir(place / "link")
    assert found == place / "real"
