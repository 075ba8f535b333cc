"""The shared port behind a real Hypercorn: which door opens, what is refused, what hostile clients cost."""

from __future__ import annotations

import contextlib
import select
import socket
import time

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from hypercorn.config import Config

import relay.websocket.listener as listener_module
from relay.errors import ConfigError
from relay.websocket.listener import BACKLOG, ListenerLimits, configure, install
from tests.websocket.echo_server import Echo
from tests.websocket.process import END, HANDSHAKE, EchoServer, client_frame, read_all

NIP11 = b"Accept: application/nostr+json\r\n"
CLOSE = b"Connection: close\r\n"
SHORT = {"head_seconds": 1.0, "send_stall_seconds": 0.5, "stop_seconds": 0.5}


@pytest.fixture(scope="module")
def server():
    echo_server = EchoServer(connections_max=2, limits=SHORT)
    yield echo_server
    _, errors, _ = echo_server.stop()
    assert errors == ""


def open_websocket(server, extra: bytes = b"") -> socket.socket:
    sock = server.connect()
    sock.sendall(HANDSHAKE + extra + END)
    assert sock.recv(4096).startswith(b"HTTP/1.1 101")
    return sock


def close_websocket(sock: socket.socket) -> None:
    sock.sendall(client_frame(b"\x03\xe8", 8))
    assert read_all(sock) == b"\x88\x02\x03\xe8"
    sock.close()


# ---- doors


def test_an_upgrade_reaches_the_handler_with_the_peers_address(server):
    sock = open_websocket(server)
    sock.sendall(client_frame(b"hello"))
    assert sock.recv(100) == b"\x81\x0f127.0.0.1 hello"
    close_websocket(sock)


def test_the_relay_document_has_precedence_over_an_upgrade(server):
    request = HANDSHAKE + NIP11 + CLOSE + END
    answer = server.exchange(request)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'{"name":"document"}')


def test_an_upgrade_of_another_path_is_an_ordinary_request(server):
    answer = server.exchange(HANDSHAKE.replace(b"GET / ", b"GET /other ") + CLOSE + END)
    assert answer.startswith(b"HTTP/1.1 404")


def test_an_upgrade_as_a_later_request_is_refused(server):
    answer = server.exchange(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n" + HANDSHAKE + END)
    first, second = answer.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert first.endswith(b"ready")
    assert second.startswith(b"400")
    assert b"content-length: 0" in second


def test_an_upgrade_over_http2_is_refused_and_the_connection_goes_on(server):
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    statuses: dict[int, str] = {}
    with server.connect() as sock:

        def converse(stream: int) -> None:
            sock.sendall(client.data_to_send())
            while stream not in statuses:
                for event in client.receive_data(sock.recv(65536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        statuses[event.stream_id] = dict(event.headers)[":status"]
                sock.sendall(client.data_to_send())

        common = [(":scheme", "http"), (":authority", "x")]
        client.send_headers(1, [(":method", "GET"), (":path", "/ready"), *common], end_stream=True)
        converse(1)
        extended = [(":method", "CONNECT"), (":protocol", "websocket"), (":path", "/"), *common]
        client.send_headers(3, [*extended, ("sec-websocket-version", "13")])
        converse(3)
        client.send_headers(5, [(":method", "GET"), (":path", "/ready"), *common], end_stream=True)
        converse(5)
    assert statuses == {1: "200", 3: "400", 5: "200"}


# ---- refusals


def test_a_foreign_origin_is_refused_before_the_upgrade(server):
    assert server.exchange(HANDSHAKE + b"Origin: https://evil.example\r\n" + END).startswith(b"HTTP/1.1 403 Forbidden")
    close_websocket(open_websocket(server, b"Origin: http://x\r\n"))


def test_above_the_limit_an_upgrade_gets_503_and_room_is_made_again(server):
    socks = [open_websocket(server) for _ in range(2)]
    answer = server.exchange(HANDSHAKE + END)
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 5\r\n" in answer
    assert answer.endswith(b'\r\n\r\n{"error":"too many connections"}')
    assert server.answers()  # plain HTTP has its own limits
    for sock in socks:
        close_websocket(sock)
    close_websocket(open_websocket(server))


def test_too_many_upgrades_of_an_address_get_429_before_the_upgrade():
    server = EchoServer(arrivals_max=2)
    close_websocket(open_websocket(server))
    assert server.answers()  # plain HTTP does not count
    assert server.exchange(HANDSHAKE.replace(b"13", b"8") + END).startswith(b"HTTP/1.1 426 ")  # nor what is no upgrade
    assert server.exchange(HANDSHAKE + b"Origin: https://evil.example\r\n" + END).startswith(b"HTTP/1.1 403 ")
    close_websocket(open_websocket(server))
    answer = server.exchange(HANDSHAKE + END)
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after: 30\r\n" in answer
    assert answer.endswith(b'\r\n\r\n{"error":"too many new connections"}')
    statistics, errors, _ = server.stop()
    assert errors == ""
    assert (statistics["websockets"], statistics["refused"]["429"]) == (2, 1)


def test_a_bad_handshake_is_answered_at_once(server):
    began = time.monotonic()
    answer = server.exchange(HANDSHAKE.replace(b"13", b"8") + END)
    assert answer.startswith(b"HTTP/1.1 426 Upgrade Required")
    assert b"Sec-WebSocket-Version: 13" in answer
    assert server.exchange(HANDSHAKE.replace(b"-Key", b"-Kay") + END).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - began < 3


def test_a_head_that_is_too_large_is_refused_in_words_though_more_is_under_way(server):
    answer = server.exchange(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


# ---- what hostile clients cost


def test_a_dripping_head_is_cut_in_time_and_costs_little(server):
    cpu = server.cpu_seconds()
    began = time.monotonic()
    with server.connect() as sock:
        with contextlib.suppress(OSError):
            for byte in HANDSHAKE * 20:
                sock.sendall(bytes([byte]))
                time.sleep(0.005)
        assert read_all(sock) == b""
    assert 0.9 < time.monotonic() - began < 4
    assert server.cpu_seconds() - cpu < 0.5


def test_a_head_that_arrives_byte_by_byte_in_time_is_served(server):
    with server.connect() as sock:
        for byte in HANDSHAKE + END:
            sock.sendall(bytes([byte]))
        assert sock.recv(4096).startswith(b"HTTP/1.1 101")
        close_websocket(sock)


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nHost:", b"G", b""])
def test_half_a_head_and_the_end_of_input_is_closed_at_once_without_spinning(server, head):
    cpu = server.cpu_seconds()
    began = time.monotonic()
    with server.connect() as sock:
        sock.sendall(head)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    assert time.monotonic() - began < 0.9
    assert server.cpu_seconds() - cpu < 0.2


def test_silent_connections_are_cut_in_time_without_spinning(server):
    cpu = server.cpu_seconds()
    began = time.monotonic()
    socks = [server.connect() for _ in range(50)]
    for sock in socks[::2]:
        sock.sendall(b"GET / HT")
    for sock in socks:
        assert read_all(sock) == b""
        sock.close()
    assert 0.5 < time.monotonic() - began < 4
    assert server.cpu_seconds() - cpu < 0.5


def test_a_client_that_does_not_read_its_response_is_cut(server):
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.settimeout(10)
        began = time.monotonic()
        poller = select.poll()
        poller.register(sock, 0)  # only hang-up and error
        assert poller.poll(8000), "the server did not hang up"
        assert time.monotonic() - began >= 0.4
    assert server.answers()


def test_a_client_that_reads_its_response_gets_all_of_it(server):
    answer = server.exchange(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert len(answer) > 64 << 20


# ---- servers of their own


def test_a_client_that_does_not_read_delays_the_stop_by_its_bound_only():
    server = EchoServer(limits={"stop_seconds": 0.5, "send_stall_seconds": 60.0})
    stuck = server.connect()
    idle = server.connect()  # has sent nothing: must not be waited for
    websocket = open_websocket(server)
    with stuck, idle, websocket:
        stuck.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stuck.recv(10)
        statistics, errors, seconds = server.stop()
        assert read_all(websocket) == b"\x88\x0c\x03\xf4restarting"
    assert errors == ""
    assert seconds < 5
    assert (statistics["http"], statistics["websockets"], statistics["no_head"]) == (1, 1, 1)


def test_running_out_of_descriptors_pauses_accepting_and_it_recovers():
    server = EchoServer(files_max=40)
    cpu = server.cpu_seconds()
    began = time.monotonic()
    socks = [server.connect() for _ in range(100)]
    socks[-1].sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    socks[-1].settimeout(0.5)
    with pytest.raises(TimeoutError):
        socks[-1].recv(1)
    busy = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
    for sock in socks[:-1]:
        sock.close()
    socks[-1].settimeout(5)
    with socks[-1]:
        assert read_all(socks[-1]).startswith(b"HTTP/1.1 200")
    assert server.answers()
    _, errors, _ = server.stop()
    assert "EMFILE" in errors  # Trio's own note
    assert busy < 0.7


def test_the_same_doors_on_a_unix_socket(tmp_path):
    server = EchoServer(uds=str(tmp_path / "relay.sock"), limits=SHORT)
    assert server.answers()
    sock = server.connect()
    for part in (HANDSHAKE[:30], HANDSHAKE[30:], END):
        sock.sendall(part)
        time.sleep(0.05)
    assert sock.recv(4096).startswith(b"HTTP/1.1 101")
    sock.sendall(client_frame(b"hello"))
    assert sock.recv(100) == b"\x81\x0aunix hello"
    close_websocket(sock)
    cpu = server.cpu_seconds()
    with server.connect() as dripping:
        dripping.sendall(b"GET")
        assert read_all(dripping) == b""
    assert server.cpu_seconds() - cpu < 0.5
    server.stop()


# ---- installing


def test_install_replaces_hypercorns_class_and_may_be_repeated(monkeypatch):
    monkeypatch.setattr(listener_module.hypercorn_run, "TCPServer", listener_module.TCPServer)
    first = install(Echo())
    assert listener_module.hypercorn_run.TCPServer.listener is first
    second = install(Echo(), limits=ListenerLimits(head_bytes=100))
    assert listener_module.hypercorn_run.TCPServer.listener is second
    assert second.statistics().connections == 0


def test_another_hypercorn_is_refused(monkeypatch):
    monkeypatch.setattr(listener_module.hypercorn_run, "TCPServer", object)
    with pytest.raises(ConfigError):
        install(Echo())


def test_configure_sets_the_backlog_and_refuses_tls():
    config = Config()
    configure(config)
    assert config.backlog == BACKLOG
    config.certfile = "certificate.pem"
    with pytest.raises(ConfigError):
        configure(config)


async def test_sockets_are_tuned():
    with trio.socket.socket() as sock:
        listener_module._tune(sock)
        listener_module._tune_websocket(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 200_000
