from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from relay.embedded import process
from relay.embedded.account import Account
from tests.embedded.conftest import needs_root

SLEEP = ["/bin/sleep", "1000"]


def sleeper() -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as output:
        return process.spawn(SLEEP, account=None, output=output, death_signal=signal.SIGKILL)


def exists(pid: int) -> bool:
    """Alive: a zombie that nobody has reaped yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_child_leads_a_session_of_its_own() -> None:
    child = sleeper()
    assert os.getsid(child.pid) == child.pid
    child.kill()
    assert await process.wait_exit(child) == -signal.SIGKILL


async def test_child_gets_no_postgres_variables_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPORT", "PGOPTIONS", "SPROUT_RELAY_PRIVATE_KEY"):
        monkeypatch.setenv(name, "leak")
    monkeypatch.setenv("LANG", "tr_TR.UTF-8")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    code, output = await process.run(["/usr/bin/env"], account=None)
    assert code == 0
    variables = dict(line.split("=", 1) for line in output.splitlines())
    assert set(variables) <= {"PATH", "LD_LIBRARY_PATH", "TMPDIR", "LC_ALL", "TZ"}
    assert variables["LC_ALL"] == "C"
    assert variables["LD_LIBRARY_PATH"] == "/somewhere"


@needs_root
async def test_child_is_the_account_alone() -> None:
    code, output = await process.run(["/usr/bin/id"], account=Account("somebody", 54321, 54322))
    assert code == 0
    assert output == "uid=54321 gid=54322 groups=54322"


async def test_run_feeds_input_and_collects_more_output_than_a_pipe_holds() -> None:
    given = b"x" * 1_000_000
    assert await process.run(["/bin/cat"], account=None, stdin=given) == (0, given.decode())
    assert await process.run(["/bin/sh", "-c", "echo no >&2; exit 3"], account=None) == (3, "no")
    with pytest.raises(FileNotFoundError):
        await process.run(["/no/such/program"], account=None)


async def test_run_kills_the_whole_group_when_cancelled(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $$ $! > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; wait"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: process.run(["/bin/sh", "-c", script], account=None))
        with trio.fail_after(5):
            while not (tmp_path / "pids").exists():
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    shell, inner = map(int, (tmp_path / "pids").read_text().split())
    assert not exists(shell)
    with trio.fail_after(5):  # the orphan was sent SIGKILL; init reaps it when it comes to it
        while exists(inner):
            await trio.sleep(0.005)


async def test_wait_exit_serves_several_tasks_without_a_thread() -> None:
    child = sleeper()
    codes = []

    async def wait() -> None:
        codes.append(await process.wait_exit(child))

    threads = threading.active_count()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert codes == []
        assert threading.active_count() == threads
        child.terminate()
    assert codes == [-signal.SIGTERM] * 2


async def test_wait_exit_polls_where_there_is_no_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    child = sleeper()
    with trio.move_on_after(0.05) as scope:
        await process.wait_exit(child)
    assert scope.cancelled_caught
    child.kill()
    with trio.fail_after(5):
        assert await process.wait_exit(child) == -signal.SIGKILL


def test_child_dies_with_its_parent() -> None:
    script = (
        "import signal, sys, tempfile; sys.path.insert(0, '.'); from relay.embedded import process\n"
        "child = process.spawn(['/bin/sleep', '1000'], account=None, output=tempfile.TemporaryFile(),"
        " death_signal=signal.SIGINT)\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        watched = os.pidfd_open(pid)
        parent.kill()
        try:
            assert select.select([watched], [], [], 5)[0]
        finally:
            os.close(watched)
    assert not exists(pid)


async def test_nobody_is_found_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    assert process.living_in(tmp_path / "nothing") == []
    assert await process.end_all_in(tmp_path, (signal.SIGKILL, 1.0)) == []
    process.signal_each([2**22 + 1], signal.SIGKILL)  # over the largest pid: gone, which is no error


def test_without_the_system_call_children_are_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_prctl", None)
    child = sleeper()
    assert exists(child.pid)
    child.kill()
    child.wait(5)
