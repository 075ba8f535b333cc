"""Reading a request's head: the door that it is sent through, and agreement with the parser that reads it again."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.websocket.head import (
    _parse_any,
    _parse_plain,
    head_end,
    parse_head,
    switch_protocols,
    upgrade_fault,
    without_upgrade,
)
from relay.websocket.origin import same_host_or
from tests.websocket.process import END, HANDSHAKE


def head(extra: bytes = b"", request: bytes = HANDSHAKE):
    parsed = parse_head(request + extra + END)
    assert parsed is not None
    return parsed


@given(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b": "]), max_size=12))
def test_the_end_is_found_where_h11_finds_it_however_the_bytes_arrive(pieces):
    data = b"GET / HTTP/1.1\r\n" + b"".join(pieces)
    whole = head_end(data)
    for seen in range(len(data)):
        if head_end(data[:seen]) is None:
            assert head_end(data, seen) == whole
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        complete = connection.next_event() is not h11.NEED_DATA
    except h11.RemoteProtocolError:
        complete = True
    assert complete == (whole is not None)


names = st.sampled_from(
    ["Host", "Upgrade", "Connection", "X-A", "Accept", "Content-Length", "Transfer-Encoding", "x_y"]
)
odd = st.text(st.sampled_from('aA1:/, \t\r\n\0\x7f\xe9-"(=;'), max_size=6)
fields = st.lists(
    st.tuples(st.one_of(names, odd), odd, st.sampled_from(["\r\n"] * 9 + ["\n", "\r", "\r\n "])), max_size=5
)
targets = st.one_of(st.just("/"), st.text(st.sampled_from("/a%2?# \x7f\xe9*"), max_size=5))


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(["GET", "GET", "POST", "get"]), targets, st.sampled_from(["1.1", "1.1", "1.0", "2"]), fields)
def test_what_is_read_by_the_pattern_is_read_so_by_h11(method, target, version, lines):
    head = (
        f"{method} {target} HTTP/{version}\r\nHost: x\r\n" + "".join(f"{n}: {v}{end}" for n, v, end in lines) + "\r\n"
    )
    data = head.encode("latin-1")
    found = _parse_plain(data)
    if found is not None:
        assert _parse_any(data) == found


@pytest.mark.parametrize(
    ("extra", "plain"),
    [
        (b"", True),
        (b'User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nOrigin: http://x\r\nCookie: a=b; c="d"\r\nX:\r\n', True),
        (b"X: a\r\n b\r\n", False),
        (b"X: \xe9\r\n", False),
        (b"Host: y\r\n", False),
        (b"Content-Length: 0\r\n", False),
    ],
)
def test_ordinary_heads_take_the_short_way_and_odd_ones_do_not(extra, plain):
    assert (_parse_plain(HANDSHAKE + extra + END) is not None) is plain


def test_an_upgrade_is_answered_with_its_token_and_nothing_that_was_offered():
    """The example of RFC 6455 §1.3."""
    offer = b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
    assert switch_protocols(head(offer)) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_a_head_is_read_with_its_query_and_joined_headers():
    parsed = head(b"X-A: 1\r\nx-a: 2\r\n", HANDSHAKE.replace(b"GET / ", b"GET /a%20b?c=%20 "))
    assert (parsed.method, parsed.path, parsed.query, parsed.version) == ("GET", "/a b", "c=%20", "1.1")
    assert parsed.headers["x-a"] == "1, 2"
    assert parsed.headers["host"] == "x"


@pytest.mark.parametrize(
    ("target", "path"),
    [("/", "/"), ("http://x/", "/"), ("http://x", "/"), ("http://x/a?b", "/a"), ("*", "*"), ("http://[", "http://[")],
)
def test_every_form_of_target_has_a_path(target, path):
    assert head(request=HANDSHAKE.replace(b" / ", f" {target} ".encode())).path == path


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"\x16\x03\x01\n\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_is_left_to_hypercorn(data):
    assert parse_head(data) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Upgrade: websocket\r\n", b""),
    ],
)
def test_what_is_no_upgrade(old, new):
    assert not head(request=HANDSHAKE.replace(old, new)).is_websocket_upgrade


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b""),
        (b"Connection: Upgrade", b"connection: keep-alive , UPGRADE"),
        (b"Upgrade: websocket", b"Upgrade:\t WebSocket "),
        (b"\r\n", b"\n"),
    ],
)
def test_what_is_an_upgrade_without_fault(old, new):
    data = HANDSHAKE.replace(old, new) + END
    parsed = parse_head(data)
    assert parsed.is_websocket_upgrade
    assert upgrade_fault(parsed) is None


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 12", 426),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 400),
        (b"Sec-WebSocket-Key", b"X-Key", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!", 400),
        (b"Upgrade: websocket", b"Upgrade: foo, websocket", 400),
        (b"Host: x", b"Host: xn--a", 400),
        (b"Host: x", b"Host: x\r\nContent-Length: 5", 400),
        (b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked", 400),
    ],
)
def test_an_upgrade_that_cannot_succeed_is_known_before(old, new, status):
    data = HANDSHAKE.replace(old, new) + END
    parsed = parse_head(data)
    assert parsed.is_websocket_upgrade
    fault = upgrade_fault(parsed)
    assert fault.status == status
    assert (("Sec-WebSocket-Version", "13") in fault.headers) == (b"Version" in old)


def test_without_its_upgrade_a_request_is_otherwise_the_same():
    data = HANDSHAKE + b"X-Folded: a\r\n b\r\nHTTP2-Settings: AAMA\r\nAccept: application/nostr+json\r\n" + END
    before = parse_head(data)
    after = parse_head(without_upgrade(data))
    assert before.wants_relay_document
    assert after.wants_relay_document
    assert not after.is_websocket_upgrade
    assert after.headers == {k: v for k, v in before.headers.items() if k not in ("upgrade", "http2-settings")}
    assert (after.method, after.path, after.version) == (before.method, before.path, before.version)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "relay.example", True),
        ("https://relay.example", "relay.example", True),
        ("https://relay.example", "relay.example:443", True),
        ("https://RELAY.example", "relay.EXAMPLE", True),
        ("http://localhost:3000", "localhost:3000", True),
        ("http://[::1]:3000", "[::1]:3000", True),
        ("https://listed.example", "relay.example", True),
        ("https://listed.example/", "relay.example", True),
        ("https://evil.example", "relay.example", False),
        ("https://relay.example.evil", "relay.example", False),
        ("https://relay.example:8443", "relay.example", False),
        ("http://relay.example", "relay.example:443", False),
        ("null", "relay.example", False),
        ("null", "", False),
        ("file://", "", False),
        ("https://", "", False),
        ("https://relay.example:x", "relay.example", False),
        ("https://[", "relay.example", False),
        ("https://relay.example", "relay.example:99999", False),
    ],
)
def test_the_default_origin_policy(origin, host, allowed):
    extra = b"" if origin is None else b"Origin: %s\r\n" % origin.encode()
    request = head(extra, HANDSHAKE.replace(b"Host: x", b"Host: " + host.encode()))
    assert same_host_or(["https://listed.example"])(request) is allowed
    assert same_host_or(["*"])(request)
