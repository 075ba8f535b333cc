"""The real relay as an operator starts it: a process of its own, told what to do by signals, judged by its exit."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import trio
from trio_websocket import wrap_client_stream

from relay.embedded.process import living_in, wait_exit
from tests.support.core import Person
from tests.support.relay import Client, auth_event, fields

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 60
"""On two busy cores, with initdb; a start takes two seconds."""

FORMS = {
    "relay serve": [str(BIN / "relay"), "serve"],
    "python -m relay": [sys.executable, "-m", "relay"],
    "hypercorn -c": [str(BIN / "hypercorn"), "-c", str(REPOSITORY / "hypercorn.toml"), "relay.asgi:app"],
    "hypercorn -w 0": [str(BIN / "hypercorn"), "-k", "trio", "-w", "0", "relay.asgi:app"],
    "hypercorn -w 1": [str(BIN / "hypercorn"), "-k", "trio", "-w", "1", "relay.asgi:app"],
}


@contextmanager
def reachable_dir() -> Iterator[Path]:
    """A temporary directory that the embedded server's account may enter."""
    path = Path(tempfile.mkdtemp(prefix="relay-launch-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Launched:
    """One process of a launch form, with everything that its children are."""

    form: str
    directory: Path
    port: int
    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path
    told_at: float = 0.0
    clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def log(self) -> list[dict[str, Any]]:
        """The JSON lines of standard error; others (tracebacks, Hypercorn's own) have the key `text`."""
        found = []
        for line in self.stderr.read_text(errors="replace").splitlines():
            try:
                found.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                found.append({"event": "", "text": line})
        return found

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"].startswith(event)]

    async def wait_said(self, event: str, times: int = 1) -> dict[str, Any]:
        with trio.fail_after(START_SECONDS):
            while len(found := self.said(event)) < times:
                assert self.process.poll() is None or self.said(event), self.stderr.read_text()
                await trio.sleep(0.02)
            return found[-1]

    async def ready(self) -> Launched:
        await self.wait_said("ready")
        return self

    @property
    def worker(self) -> int:
        """The process that serves: the one itself, or the child that Hypercorn has spawned."""
        if self.form != "hypercorn -w 1":
            return self.process.pid
        for child in psutil.Process(self.process.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError("no worker")

    def signal(self, number: signal.Signals, target: str = "parent") -> None:
        """`target`: parent, child or group. The clock of `exit` starts with the first signal."""
        self.told_at = self.told_at or trio.current_time()
        if target == "group":
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid if target == "parent" else self.worker, number)

    async def exit(self) -> tuple[int, float]:
        """Exit code, and seconds since the first signal."""
        with trio.fail_after(START_SECONDS):
            code = await wait_exit(self.process)
        return code, trio.current_time() - self.told_at

    async def connect(
        self, nursery: trio.Nursery, person: Person | None = None, *, receive_buffer: int | None = None
    ) -> Client:
        """A connection, logged in if there is a person. `receive_buffer`: bytes that the client's kernel may hold."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.port))
        stream = trio.SocketStream(sock)
        websocket = await wrap_client_stream(nursery, stream, "localhost", "/", max_message_size=8 << 20)
        client = Client(websocket, stream)
        self.clients.append(client)
        client.challenge = (await client.expect("AUTH"))[1]
        if person is not None:
            await client.send("AUTH", fields(auth_event(person, client.challenge, relay=self.url)))
            assert (await client.expect("OK"))[2:] == [True, ""]
        return client

    def postgres(self) -> list[int]:
        return living_in(self.directory / "data" / "postgres")


@asynccontextmanager
async def launched(
    form: str, directory: Path, *arguments: str, command: Sequence[str] = (), **environment: str
) -> AsyncIterator[Launched]:
    """Start a form in a session of its own, with nothing of ours in its environment; kill what is left at the end.
    `command` is run in the place of what the form usually is."""
    port = free_port()
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(REPOSITORY),
        "SPROUT_DATA_DIR": str(directory / "data"),
        "SPROUT_HEALTH_PORT": "0",
        "SPROUT_METRICS_PORT": "0",
        "SPROUT_LOG_FORMAT": "json",
        "SPROUT_BIND_ADDR": f"127.0.0.1:{port}",
        "RELAY_URL": f"ws://127.0.0.1:{port}",
    }
    bind = ("-b", f"127.0.0.1:{port}") if form.startswith("hypercorn") else ()
    stdout, stderr = directory / "stdout", directory / "stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*(command or FORMS[form]), *bind, *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=directory, env={**own, **environment},
            start_new_session=True,
        )  # fmt: skip
    running = Launched(form, directory, port, process, stdout, stderr)
    try:
        yield running
    finally:
        with trio.CancelScope(shield=True):
            for client in running.clients:
                await trio.aclose_forcefully(client.stream)
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for pid in (process.pid, *(child.pid for child in family), *running.postgres()):
                if pid != process.pid or process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()
