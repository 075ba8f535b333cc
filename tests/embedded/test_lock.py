from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.embedded import DataDirBusy, DataDirUnusable
from relay.embedded.lock import LOCK_NAME, data_dir_lock
from tests.embedded.conftest import RelayProcess, needs_root

SOCKET = Path("/somewhere/socket")


def test_holder_is_named_with_purpose_and_socket(tmp_path: Path) -> None:
    with data_dir_lock(tmp_path, SOCKET, "relay"):
        with pytest.raises(DataDirBusy) as caught, data_dir_lock(tmp_path, SOCKET, "command"):
            pass
        assert (caught.value.pid, caught.value.socket_dir, caught.value.serves) == (os.getpid(), SOCKET, True)
        assert stat.S_IMODE((tmp_path / LOCK_NAME).stat().st_mode) == 0o600
    with data_dir_lock(tmp_path, SOCKET, "command"):
        with pytest.raises(DataDirBusy) as caught, data_dir_lock(tmp_path, SOCKET, "relay"):
            pass
        assert not caught.value.serves


def test_holder_that_has_not_signed_yet(tmp_path: Path) -> None:
    with data_dir_lock(tmp_path, SOCKET, "relay"):
        (tmp_path / LOCK_NAME).write_bytes(b"")
        with (
            pytest.raises(DataDirBusy, match="in use by another process") as caught,
            data_dir_lock(tmp_path, SOCKET, "relay"),
        ):
            pass
        assert (caught.value.pid, caught.value.serves) == (None, False)


def test_lock_of_a_killed_process_is_gone(data_dir: Path, relay_process: Callable[..., RelayProcess]) -> None:
    holder = relay_process(data_dir)
    holder.wait_ready()
    with pytest.raises(DataDirBusy) as caught, data_dir_lock(data_dir, SOCKET, "relay"):
        pass
    assert caught.value.pid == holder.process.pid
    holder.kill()
    with data_dir_lock(data_dir, SOCKET, "relay"):  # its server may still be shutting down, and does not hold it
        pass


def test_directory_that_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(DataDirUnusable, match="cannot be locked"), data_dir_lock(tmp_path / "no", SOCKET, "relay"):
        pass


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to(victim)
    with pytest.raises(DataDirUnusable, match="cannot be locked"), data_dir_lock(tmp_path, SOCKET, "relay"):
        pass
    assert victim.read_text() == "precious"


@needs_root
def test_root_leaves_files_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54322)
    with data_dir_lock(tmp_path, SOCKET, "command"):
        found = (tmp_path / LOCK_NAME).stat()
    assert (found.st_uid, found.st_gid) == (54321, 54322)
