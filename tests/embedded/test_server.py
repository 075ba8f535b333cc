from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from relay.embedded import (
    ClusterFailed,
    DataDirBusy,
    DataDirUnusable,
    Server,
    ServerFailed,
    cluster,
    embedded_postgres,
)
from relay.embedded.binaries import candidates
from relay.embedded.process import living_in
from tests.embedded.conftest import RelayProcess, needs_root, psql
from tests.embedded.test_process import exists

SYSTEM_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def processes_of(data_dir: Path) -> list[int]:
    return living_in(data_dir / "postgres")


@contextlib.asynccontextmanager
async def supervised(data_dir: Path) -> AsyncIterator[Server]:
    async with embedded_postgres(data_dir) as server, trio.open_nursery() as nursery:
        assert await nursery.start(server.supervise) is server
        yield server
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def session(dsn: str, statement: str, marker: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A client in the middle of `statement`, which must contain `marker`."""
    arguments = [candidates()[0] / "psql", "-Xq", "-d", dsn, "-c", statement]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        try:
            query = f"select count(*) from pg_stat_activity where query like '%{marker}%' and pid <> pg_backend_pid()"
            for _ in range(500):
                if psql(dsn, query) == "1":
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("the session did not begin")
            yield client
        finally:
            client.kill()


async def wait_restarted(server: Server, pid: int) -> None:
    with trio.fail_after(10):
        while server.pid == pid or not cluster.says_ready(server.data_dir, server.pid):
            await trio.sleep(0.005)


# -- start and stop ---------------------------------------------------------------------------------------------------
async def test_first_start_makes_everything_and_stop_leaves_only_files(place: Path) -> None:
    threads = threading.active_count()
    data_dir = place / "new" / "data"
    async with embedded_postgres(data_dir) as server:
        assert psql(server.dsn, "select current_user, current_database()") == "relay|relay"
        assert psql(server.dsn, "show data_checksums") == "on"
        assert psql(server.dsn, "show server_encoding") == "UTF8"
        assert server.statistics().pid == server.pid
        assert server.statistics().restarts == 0
        assert 0 < server.statistics().ready_seconds < 10
        assert server.statistics().log_bytes > 0
        assert server.version.startswith("18.")
        assert len(processes_of(data_dir)) > 3
        pid = server.pid
        assert pid in processes_of(data_dir)
    assert processes_of(data_dir) == []
    assert not exists(pid)
    assert threading.active_count() == threads
    assert sorted(path.name for path in data_dir.iterdir()) == ["postgres", "postgres.log", "relay.lock", "socket"]
    assert list((data_dir / "socket").iterdir()) == []


async def test_next_start_finds_what_was_written(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        psql(server.dsn, "create table t as select 1 as n")
    async with embedded_postgres(data_dir) as server:
        assert psql(server.dsn, "select n from t") == "1"


async def test_only_its_own_account_reaches_the_server(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        assert psql(server.dsn, "show listen_addresses") == ""
        directory = server.socket_dir.stat()
        assert stat.S_IMODE(directory.st_mode) == 0o700
        assert directory.st_uid == Path(f"/proc/{server.pid}").stat().st_uid
        assert stat.S_IMODE(cluster.socket_path(server.socket_dir).stat().st_mode) == 0o700
        rules = psql(server.dsn, "select type || ' ' || auth_method from pg_hba_file_rules order by 1").split("\n")
        assert set(rules) == {"local trust", "host reject"}
        environment = Path(f"/proc/{server.pid}/environ").read_text()
        assert "\0PG" not in f"\0{environment}".replace("\0PG_GRANDPARENT_PID", "")


@needs_root
async def test_root_serves_as_an_unprivileged_account(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid not in (0, -1)
        assert os.getsid(server.pid) == server.pid


async def test_settings_go_over_ours_and_ours_over_the_default(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, settings={"max_connections": "17", "cluster_name": "mine"}) as server:
        assert psql(server.dsn, "show max_connections") == "17"
        assert psql(server.dsn, "show jit") == "off"
        assert psql(server.dsn, "show fsync") == "on"
        assert processes_of(data_dir) != []  # the name by which we find it cannot be taken away


@pytest.mark.parametrize("binaries", [None, *SYSTEM_BINARIES], ids=str)
async def test_search_folds_case_beyond_ascii(place: Path, binaries: Path | None) -> None:
    async with embedded_postgres(place / "data", binaries=binaries) as server:
        assert psql(server.dsn, "select to_tsvector('simple', 'GRÖSSE') @@ to_tsquery('simple', 'grösse')") == "t"
        assert psql(server.dsn, "select lower('ÄЖΩ')") == "äжω"


async def test_long_path_takes_the_socket_to_the_temporary_directory(place: Path, template: Path) -> None:
    data_dir = place / ("long" * 20) / "data"
    data_dir.parent.mkdir()
    subprocess.run(["cp", "-a", template, data_dir], check=True)
    async with embedded_postgres(data_dir) as server:
        assert not server.socket_dir.is_relative_to(data_dir)
        assert psql(server.dsn, "select 1") == "1"
    server.socket_dir.rmdir()


async def test_stop_with_an_open_transaction_keeps_its_deadlines(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        psql(server.dsn, "create table t (n int)")
        stack = contextlib.ExitStack()
        stack.enter_context(session(server.dsn, "begin; insert into t values (1); select pg_sleep(1000)", "pg_sleep"))
        began = time.perf_counter()
    assert time.perf_counter() - began < 2.0
    assert processes_of(data_dir) == []
    stack.close()


async def test_frozen_server_is_killed_within_the_deadlines(data_dir: Path) -> None:
    async with embedded_postgres(data_dir, stop_seconds=0.2, quit_seconds=0.2, kill_seconds=0.5) as server:
        os.kill(server.pid, signal.SIGSTOP)
        began = time.perf_counter()
    assert 0.4 < time.perf_counter() - began < 2.4
    assert processes_of(data_dir) == []
    assert not exists(server.pid)


async def test_cancelled_inside_it_still_stops(data_dir: Path) -> None:
    with trio.CancelScope() as scope:
        async with embedded_postgres(data_dir):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert processes_of(data_dir) == []


async def test_abort_from_another_thread_leaves_nothing(data_dir: Path) -> None:
    async with supervised(data_dir) as server:
        pid = server.pid
        watchdog = threading.Thread(target=server.abort)
        watchdog.start()
        watchdog.join()
        with trio.fail_after(2):
            while processes_of(data_dir):
                await trio.sleep(0.005)
    assert server.pid == pid  # and supervision did not start it again


# -- two relays, and what a killed one leaves -----------------------------------------------------------------------
async def test_second_relay_is_refused_with_the_pid_of_the_first(
    data_dir: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    first = relay_process(data_dir)
    first.wait_ready()
    with pytest.raises(DataDirBusy, match=rf"{data_dir} is in use by process {first.process.pid}\b") as caught:
        async with embedded_postgres(data_dir):
            pass
    assert caught.value.pid == first.process.pid
    assert psql(first.ready["dsn"], "select 1") == "1"


async def test_start_at_once_after_kill_9_of_the_relay(
    data_dir: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    first = relay_process(data_dir)
    first.wait_ready()
    psql(first.ready["dsn"], "create table t as select 1 as n")
    with session(first.ready["dsn"], "select pg_sleep(1000)", "pg_sleep(1000)"):
        first.kill()
        began = time.perf_counter()
        async with embedded_postgres(data_dir) as server:
            assert time.perf_counter() - began < 2.0
            assert server.pid != first.ready["pid"]
            assert not exists(first.ready["pid"])
            assert psql(server.dsn, "select n from t") == "1"


@pytest.mark.slow
async def test_frozen_server_of_a_killed_relay_is_ended_by_force(
    data_dir: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    first = relay_process(data_dir)
    first.wait_ready()
    os.kill(first.ready["pid"], signal.SIGSTOP)
    first.kill()
    began = time.perf_counter()
    async with embedded_postgres(data_dir) as server:
        assert 1.4 < time.perf_counter() - began < 4.0
        assert not exists(first.ready["pid"])
        assert psql(server.dsn, "select 1") == "1"


async def test_server_that_somebody_started_by_hand_is_left_alone(data_dir: Path) -> None:
    directory = data_dir / "postgres"
    owner = directory.stat()
    with (data_dir / "hand.log").open("wb") as log:
        by_hand = subprocess.Popen(
            [candidates()[0] / "postgres", "-D", directory, "-k", data_dir / "socket", "-c", "listen_addresses="],
            cwd="/",
            stdout=log,
            stderr=log,
            **({"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}),
        )
    try:
        with trio.fail_after(5):
            while not cluster.says_ready(data_dir, by_hand.pid):
                await trio.sleep(0.005)
        with pytest.raises(ServerFailed, match=rf"(?s)postmaster\.pid.*{by_hand.pid}"):
            async with embedded_postgres(data_dir):
                pass
        assert by_hand.poll() is None
    finally:
        by_hand.terminate()
        by_hand.wait(10)


async def test_stale_lock_files_with_a_recurring_number_do_not_stop_the_start(data_dir: Path) -> None:
    owner = (data_dir / "postgres").stat()
    other = subprocess.Popen(  # of the same account, else PostgreSQL itself sees that it is none of its own
        ["/bin/sleep", "1000"], **({"user": owner.st_uid} if os.geteuid() == 0 else {})
    )
    try:
        pid_file = data_dir / "postgres" / "postmaster.pid"
        pid_file.write_text(f"{other.pid}\n{data_dir}/postgres\n1\n5432\n\n\n  1 2\nready   \n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        socket_lock = data_dir / "socket" / ".s.PGSQL.5432.lock"
        socket_lock.write_text(f"{other.pid}\n{data_dir}/postgres\n1\n5432\n{data_dir}/socket\n")
        async with embedded_postgres(data_dir) as server:
            assert psql(server.dsn, "select 1") == "1"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(5)


# -- making the cluster ---------------------------------------------------------------------------------------------
async def wait_making(data_dir: Path) -> None:
    with trio.fail_after(10):
        while not list(data_dir.glob("postgres.making-*/PG_VERSION")):
            await trio.sleep(0.002)


async def test_initdb_cancelled_leaves_nothing_and_the_next_start_works(place: Path) -> None:
    async def start() -> None:
        async with embedded_postgres(place / "data"):
            raise AssertionError("cancelled too late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await wait_making(place / "data")
        nursery.cancel_scope.cancel()
    assert [path.name for path in (place / "data").iterdir()] == ["relay.lock"]
    async with embedded_postgres(place / "data") as server:
        assert psql(server.dsn, "select 1") == "1"


async def test_initdb_interrupted_by_kill_9_of_the_relay(
    place: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    first = relay_process(place / "data")
    await wait_making(place / "data")
    first.kill()
    assert not (place / "data" / "postgres").exists()
    assert list((place / "data").glob("postgres.making-*")) != []
    async with embedded_postgres(place / "data") as server:
        assert psql(server.dsn, "select 1") == "1"


@needs_root
async def test_full_disk_is_reported_in_the_words_of_initdb_and_swept(place: Path) -> None:
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "none", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ClusterFailed, match="No space left on device"):
            async with embedded_postgres(disk / "data"):
                pass
        assert [path.name for path in (disk / "data").iterdir()] == ["relay.lock"]
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        async with embedded_postgres(disk / "data", settings={"min_wal_size": "32MB"}) as server:
            assert psql(server.dsn, "select 1") == "1"
    finally:
        subprocess.run(["umount", disk], check=True)


async def test_directory_that_is_no_cluster_is_refused(place: Path) -> None:
    (place / "data" / "postgres").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(place / "data" / "postgres", 65534, 65534)
    with pytest.raises(DataDirUnusable, match="PG_VERSION is missing"):
        async with embedded_postgres(place / "data"):
            pass


async def test_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DataDirUnusable, match=r"made by PostgreSQL 17.*18\..*embedded-postgres==17"):
        async with embedded_postgres(data_dir):
            pass


async def test_server_that_cannot_start_is_reported_in_its_own_words(data_dir: Path) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)ended while it started.*no_such_setting"):
        async with embedded_postgres(data_dir, settings={"no_such_setting": "1"}):
            pass
    assert processes_of(data_dir) == []


async def test_server_without_our_database_is_reported(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server:
        psql(cluster.dsn(server.socket_dir, "postgres"), "drop database relay")
    with pytest.raises(ServerFailed, match=r'"relay" does not exist \(3D000\)'):
        async with embedded_postgres(data_dir):
            pass
    assert processes_of(data_dir) == []


async def test_server_that_is_not_ready_in_time_is_stopped(data_dir: Path) -> None:
    with pytest.raises(ServerFailed, match=r"not ready within 0\.001 s"):
        async with embedded_postgres(data_dir, ready_seconds=0.001):
            pass
    assert processes_of(data_dir) == []


# -- supervision ----------------------------------------------------------------------------------------------------
async def test_killed_server_is_started_again_without_its_old_sessions(data_dir: Path) -> None:
    async with supervised(data_dir) as server:
        psql(server.dsn, "create table t as select 1 as n")
        # Such a session does not notice that its postmaster is gone; left alone it keeps a new server from starting.
        with session(server.dsn, "select count(*) from generate_series(1, 1e12::bigint)", "generate_series"):
            old = processes_of(data_dir)
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            await wait_restarted(server, pid)
            assert not set(old) & set(processes_of(data_dir))
        assert psql(server.dsn, "select n from t") == "1"
        with trio.fail_after(2):
            while server.statistics().restarts != 1:
                await trio.sleep(0.005)


async def test_killed_session_is_postgres_own_business(data_dir: Path) -> None:
    async with supervised(data_dir) as server:
        pid = server.pid
        with session(server.dsn, "select pg_sleep(1000)", "pg_sleep(1000)"):
            victim = psql(server.dsn, "select pid from pg_stat_activity where query = 'select pg_sleep(1000)'")
            os.kill(int(victim), signal.SIGKILL)
        with trio.fail_after(10):
            while exists(int(victim)):
                await trio.sleep(0.005)
        assert server.pid == pid
        assert server.statistics().restarts == 0


@pytest.mark.slow
async def test_supervision_gives_up_on_a_server_that_keeps_dying(data_dir: Path) -> None:
    async def lose_the_control_file() -> None:
        async with supervised(data_dir) as server:
            (data_dir / "postgres" / "global" / "pg_control").unlink()
            os.kill(server.pid, signal.SIGKILL)
            with trio.fail_after(20):
                await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await lose_the_control_file()
    failure = caught.value.exceptions[0]
    assert isinstance(failure, ServerFailed)
    assert "ended 6 times within 60 s" in str(failure)
    assert "pg_control" in str(failure)
    assert processes_of(data_dir) == []


async def test_supervision_gives_up_on_a_restart_that_does_not_become_ready(data_dir: Path) -> None:
    async def hang() -> None:
        async with supervised(data_dir) as server:
            server._ready_seconds_max = 0.001
            os.kill(server.pid, signal.SIGKILL)
            with trio.fail_after(20):
                await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await hang()
    assert "not ready within" in str(caught.value.exceptions[0])
    assert processes_of(data_dir) == []


async def test_supervision_ends_when_the_server_is_stopped(data_dir: Path) -> None:
    async with embedded_postgres(data_dir) as server, trio.open_nursery() as nursery:
        await nursery.start(server.supervise)
        with trio.fail_after(5):
            await server.stop(1, 1, 1)
    assert server.statistics().restarts == 0


# -- accounts -------------------------------------------------------------------------------------------------------
@needs_root
def test_ordinary_user_runs_it_as_himself(place: Path, relay_process: Callable[..., RelayProcess]) -> None:
    os.chown(place, 65534, 65534)
    relay = relay_process(place / "data", "nobody")
    ready = relay.wait_ready()
    assert ready["notes"] == []
    assert Path(f"/proc/{ready['pid']}").stat().st_uid == 65534
    assert stat.S_IMODE((place / "data").stat().st_mode) == 0o700
    assert psql(ready["dsn"], "select current_user") == "relay"
    relay.close()
    assert processes_of(place / "data") == []


@needs_root
async def test_root_serves_the_cluster_of_an_ordinary_user_as_that_user(
    place: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    os.chown(place, 65534, 65534)
    relay = relay_process(place / "data", "nobody")
    relay.wait_ready()
    relay.close()
    async with embedded_postgres(place / "data") as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == 65534
        assert len(server.notes) == 1
        assert "runs as `nobody`" in server.notes[0]
    again = relay_process(place / "data", "nobody")  # and root left nothing there that the user cannot open
    assert "error" not in again.wait_ready()


@needs_root
def test_ordinary_user_is_refused_the_cluster_of_another(
    data_dir: Path, relay_process: Callable[..., RelayProcess]
) -> None:
    failed = relay_process(data_dir, "nobody").wait_ready()
    assert failed["error"] == "DataDirUnusable"
    assert "belongs to the account" in failed["text"]
