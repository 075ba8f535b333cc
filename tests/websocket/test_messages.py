"""What is not a message, on the wire: the NOTICE, to the byte, and a connection that goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from trio_websocket import ConnectionClosed

from tests.support.core import ALICE
from tests.support.relay import Client, RelayUnderTest, fields, serving

EVENT = fields(ALICE.sign(1, "x"))
PREFIX = "invalid message: Invalid message format: "

MALFORMED: list[tuple[str, str]] = [
    ("{}", "expected JSON array"),
    ('"EVENT"', "expected JSON array"),
    ("[]", "empty array"),
    ("[1]", "first element must be a string"),
    ('["event",{}]', "unknown message type: event"),
    ('["EVENT"]', "EVENT requires event object"),
    ('["REQ"]', "REQ requires sub_id"),
    ('["REQ",1]', "REQ sub_id must be a string"),
    ('["REQ",""]', "REQ sub_id must not be empty"),
    (orjson.dumps(["REQ", "é" * 129]).decode(), "REQ sub_id exceeds maximum length of 256 bytes"),
    (orjson.dumps(["REQ", "s", *[{}] * 11]).decode(), "REQ contains 11 filters, maximum is 10"),
    ('["REQ","s",{"#1":["x"]}]', "invalid filter: invalid alphabet char"),
    ('["CLOSE"]', "CLOSE requires sub_id"),
    ('["CLOSE",{}]', "CLOSE sub_id must be a string"),
    ('["AUTH"]', "AUTH requires event object"),
]

BEGINNINGS: list[tuple[str, str]] = [
    ("{", "JSON parse error: "),
    ("[NaN]", "JSON parse error: "),
    ('["REQ","s"]x', "JSON parse error: "),
    ('["\\ud800"]', "JSON parse error: "),
    ("[" * 200 + "]" * 200, "JSON parse error: "),
    (orjson.dumps(["EVENT", EVENT | {"id": "xyz"}]).decode(), "invalid event: Invalid event ID"),
    (orjson.dumps(["EVENT", EVENT | {"kind": 65536}]).decode(), "invalid event: "),
    (orjson.dumps(["EVENT", EVENT | {"tags": [[]]}]).decode(), "invalid event: Empty tag"),
    ('["AUTH",{}]', "invalid auth event: missing field `id`"),
    ('["REQ","s",{"kinds":[65537]}]', "invalid filter: "),
    ('["REQ","s",{"ids":["abcd"]}]', "invalid filter: "),
    ('["REQ","s",{"since":-1}]', "invalid filter: "),
]


async def still_answers(client: Client) -> None:
    await client.send("CLOSE", "alive")
    assert await client.receive() == ["CLOSED", "alive", ""]


async def test_each_malformed_message_gets_one_notice(relay: RelayUnderTest) -> None:
    client = await relay.connect()
    for text, detail in MALFORMED:
        await client.send_text(text)
        assert await client.receive() == ["NOTICE", PREFIX + detail]
    for text, beginning in BEGINNINGS:
        await client.send_text(text)
        verb, notice = await client.receive()
        assert verb == "NOTICE"
        assert notice.startswith(PREFIX + beginning), (text, notice)
    await still_answers(client)


async def test_binary_frames(relay: RelayUnderTest) -> None:
    client = await relay.connect()
    await client.send_text(b"\xff\xfe not text")
    await client.send_text('["CLOSE","ü"]'.encode())
    assert await client.receive() == ["CLOSED", "ü", ""]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 3000, id="a little too long"),
        pytest.param("x" * 3_000_000, id="much too long"),
        pytest.param("ü" * 1500, id="too long in bytes only"),
        pytest.param(b"\xff" * 3000, id="binary"),
    ],
)
async def test_a_message_that_is_too_long_is_told_so(migrated_dsn: str, text: Any) -> None:
    async with serving(migrated_dsn, max_frame_bytes=2048) as relay:
        client, other = await relay.connect(ALICE), await relay.connect()
        event = ALICE.sign(1, "before")
        await client.send("EVENT", fields(event))
        with suppress(ConnectionClosed):  # the relay may be done with us while we are still sending
            await client.send_text(text)
        code, _ = await client.closed()
        assert client.frames == [
            ["OK", event.id, True, ""],
            ["NOTICE", "invalid: message exceeds maximum size of 2048 bytes"],
        ]
        assert code == 1009
        await still_answers(other)


async def test_a_message_of_exactly_the_limit_is_read(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_frame_bytes=2048) as relay:
        client = await relay.connect()
        text = '["CLOSE","' + "x" * (2048 - 12) + '"]'
        assert len(text) == 2048
        await client.send_text(text)
        assert (await client.receive())[0] == "CLOSED"
