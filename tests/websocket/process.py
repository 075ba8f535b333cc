"""Start and stop `tests.websocket.echo_server`, and talk to it over raw sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
END = b"\r\n"
ANSWER_SECONDS = 5.0


class EchoServer:
    """One server process. `port` and `pid` are known once it answers."""

    def __init__(self, **options: object) -> None:
        self.uds = options.get("uds")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.websocket.echo_server", json.dumps(options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline().strip()
        assert first, self.process.stderr.read()
        self.port = 0 if self.uds else int(first)

    def connect(self) -> socket.socket:
        if self.uds:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.uds)
        else:
            sock = socket.create_connection(("127.0.0.1", self.port))
        sock.settimeout(ANSWER_SECONDS)
        return sock

    def exchange(self, request: bytes) -> bytes:
        """Send, then read until the server closes."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_all(sock)

    def answers(self) -> bool:
        return self.exchange(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, seconds: float = 10.0) -> tuple[dict, str, float]:
        """SIGTERM; the statistics, what it wrote to stderr, and how long it took to end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"the server did not end within {seconds} s of SIGTERM: {err}") from None
        assert self.process.returncode == 0, err
        return json.loads(out.splitlines()[-1]), err, time.monotonic() - began


def read_all(sock: socket.socket) -> bytes:
    """Until the end of input or a reset."""
    received = bytearray()
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def client_frame(
    payload: bytes, opcode: int = 1, *, final: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    mask = b"abcd"
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if masked else 0
    head += bytes([bit | len(payload)]) if len(payload) < 126 else bytes([bit | 126]) + len(payload).to_bytes(2, "big")
    if not masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))
