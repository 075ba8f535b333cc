from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from relay.embedded import DataDirUnusable, cluster
from relay.embedded.account import Account
from relay.embedded.binaries import Binaries
from relay.embedded.process import is_server
from tests.embedded.conftest import needs_root


def test_dsn_names_everything_that_the_environment_could_change() -> None:
    parts = urlsplit(cluster.dsn(Path("/with space/ü&host=evil")))
    assert (parts.scheme, parts.username, parts.path) == ("postgresql", "relay", "/relay")
    assert parse_qs(parts.query) == {"host": ["/with space/ü&host=evil"], "port": ["5432"]}


def test_locale_by_version() -> None:
    new = cluster.initdb_arguments(Binaries(Path("/b"), "18.6"), Path("/d"))
    old = cluster.initdb_arguments(Binaries(Path("/b"), "15.14"), Path("/d"))
    assert {"--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"} <= set(new)
    assert "--locale=C.UTF-8" in old
    assert "--data-checksums" in new
    assert "--data-checksums" in old


@pytest.mark.parametrize(("length", "beside"), [(103, True), (104, False)])
def test_socket_moves_when_its_path_is_too_long(length: int, *, beside: bool) -> None:
    tail = "/socket/.s.PGSQL.5432"
    data_dir = Path("/" + "ü" * ((length - len(tail) - 1) // 2) + "x" * ((length - len(tail) - 1) % 2))
    assert len(os.fsencode(f"{data_dir}{tail}")) == length
    found = cluster.socket_dir_of(data_dir)
    assert (found == data_dir / "socket") is beside
    assert found == cluster.socket_dir_of(data_dir)
    assert found != cluster.socket_dir_of(data_dir.with_name("other" + data_dir.name))
    if not beside:
        assert found.parent == Path(tempfile.gettempdir())


def test_socket_directory_is_made_and_found_again(tmp_path: Path) -> None:
    cluster.make_socket_dir(tmp_path / "socket", None)
    (tmp_path / "socket").chmod(0o777)
    cluster.make_socket_dir(tmp_path / "socket", None)
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o700


def test_socket_directory_is_no_link_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(DataDirUnusable, match=f"{name}, where the database's socket belongs, is not ours"):
            cluster.make_socket_dir(tmp_path / name, None)


@needs_root
def test_socket_directory_that_somebody_took_first_is_refused(tmp_path: Path) -> None:
    (tmp_path / "socket").mkdir()
    os.chown(tmp_path / "socket", 54321, 54322)
    with pytest.raises(DataDirUnusable, match="is not ours"):
        cluster.make_socket_dir(tmp_path / "socket", Account("nobody", 65534, 65534))
    cluster.make_socket_dir(tmp_path / "socket", Account("somebody", 54321, 54322))


def test_long_log_is_put_aside_at_the_start(tmp_path: Path) -> None:
    log = cluster.log_path(tmp_path)
    log.write_bytes(b"x" * cluster.LOG_BYTES_MAX)
    os.close(cluster.open_log(tmp_path))
    assert log.stat().st_size == cluster.LOG_BYTES_MAX
    with log.open("ab") as file:
        file.write(b"y")
    os.close(cluster.open_log(tmp_path))
    assert log.stat().st_size == 0
    assert (tmp_path / "postgres.log.1").stat().st_size == cluster.LOG_BYTES_MAX + 1


def test_interrupted_attempts_are_swept(tmp_path: Path) -> None:
    first = cluster.new_cluster(tmp_path, None)
    (first / "base").mkdir()
    second = cluster.new_cluster(tmp_path, None)
    assert list(tmp_path.iterdir()) == [second]
    cluster.adopt_cluster(second, tmp_path)
    assert list(tmp_path.iterdir()) == [cluster.cluster_dir(tmp_path)]
    with pytest.raises(DataDirUnusable, match="PG_VERSION is missing"):
        cluster.cluster_major(tmp_path)
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    assert cluster.cluster_major(tmp_path) == 15
    (tmp_path / "postgres" / "PG_VERSION").write_bytes(b"\0\0")
    with pytest.raises(DataDirUnusable, match="PG_VERSION cannot be read"):
        cluster.cluster_major(tmp_path)


def test_lock_files_of_the_dead_and_of_strangers_go_and_those_of_servers_stay(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "socket").mkdir()
    files = [cluster.pid_file(tmp_path), Path(f"{cluster.socket_path(tmp_path / 'socket')}.lock")]
    # A process called "postgres" that is none of ours.
    program = tmp_path / "postgres" / "postgres"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as server:
        while not is_server(server.pid):  # Popen returns when exec closes its pipe, a moment before the name changes
            time.sleep(0.001)
        for content, stays in (
            (f"{server.pid}\n/data\n", True),
            (f"{os.getpid()}\n/data\n", False),
            ("4194305\n", False),
            ("", False),
        ):
            for file in files:
                file.write_text(content)
            cluster.clear_stale_locks(tmp_path, tmp_path / "socket")
            assert [file.exists() for file in files] == [stays, stays], content
        server.kill()
    cluster.clear_stale_locks(tmp_path, tmp_path / "socket")
    cluster.clear_stale_locks(tmp_path, tmp_path / "socket")


def test_ready_is_believed_of_the_living_server_only(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    assert not cluster.says_ready(tmp_path, 7)
    for status, said in (("starting", False), ("ready   ", True)):
        cluster.pid_file(tmp_path).write_text(f"7\n/d\n1\n5432\n/s\n\n1 2\n{status}\n")
        assert cluster.says_ready(tmp_path, 7) is said
        assert not cluster.says_ready(tmp_path, 8)
    cluster.pid_file(tmp_path).write_text("7\n/d\n")
    assert not cluster.says_ready(tmp_path, 7)
