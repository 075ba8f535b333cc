"""What is not a message, on the wire: the NOTICE, to the byte, and a connection that goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from trio_websocket import ConnectionClosed

from tests.support.core import ALICE
from tests.support.relay import Client, RelayUnderTest, auth_event, fields, serving

EVENT = fields(ALICE.sign(1, "x"))
PREFIX = "invalid message: Invalid message format: "


def wire(*elements: Any) -> str:
    return orjson.dumps(elements).decode()


# One for each kind of mistake, in the order in which a message is looked at. Whole texts.
MALFORMED: dict[str, tuple[str, str]] = {
    "an object": ("{}", "expected JSON array"),
    "a string": ('"EVENT"', "expected JSON array"),
    "null": ("null", "expected JSON array"),
    "nothing in it": ("[]", "empty array"),
    "a number first": ("[1]", "first element must be a string"),
    "null first": ('[null,"EVENT"]', "first element must be a string"),
    "lower case": ('["event",{}]', "unknown message type: event"),
    "a word of the relay": ('["OK","x",true,""]', "unknown message type: OK"),
    "no word": ('[""]', "unknown message type: "),
    "EVENT without": ('["EVENT"]', "EVENT requires event object"),
    "EVENT id": (wire("EVENT", EVENT | {"id": "xyz"}), "invalid event: Invalid event ID"),
    "EVENT pubkey": (wire("EVENT", EVENT | {"pubkey": "ff" * 32}), "invalid event: Invalid public key"),
    "EVENT tag": (wire("EVENT", EVENT | {"tags": [[]]}), "invalid event: Empty tag"),
    "EVENT missing": (wire("EVENT", {"id": EVENT["id"]}), "invalid event: missing field `pubkey`"),
    "REQ without": ('["REQ"]', "REQ requires sub_id"),
    "REQ number": ('["REQ",1]', "REQ sub_id must be a string"),
    "REQ empty": ('["REQ",""]', "REQ sub_id must not be empty"),
    "REQ long": (wire("REQ", "x" * 257), "REQ sub_id exceeds maximum length of 256 bytes"),
    "REQ long in bytes": (wire("REQ", "é" * 129), "REQ sub_id exceeds maximum length of 256 bytes"),
    "REQ filters": (wire("REQ", "s", *[{}] * 11), "REQ contains 11 filters, maximum is 10"),
    "REQ letter": ('["REQ","s",{"#1":["x"]}]', "invalid filter: invalid alphabet char"),
    "COUNT without": ('["COUNT"]', "COUNT requires sub_id"),
    "COUNT number": ('["COUNT",1,{}]', "COUNT sub_id must be a string"),
    "COUNT empty": ('["COUNT","",{}]', "COUNT sub_id must not be empty"),
    "COUNT long": (wire("COUNT", "x" * 257, {}), "COUNT sub_id exceeds maximum length of 256 bytes"),
    "COUNT filters": (wire("COUNT", "s", *[{}] * 11), "COUNT contains 11 filters, maximum is 10"),
    "COUNT letter": ('["COUNT","s",{"#1":["x"]}]', "invalid filter: invalid alphabet char"),
    "CLOSE without": ('["CLOSE"]', "CLOSE requires sub_id"),
    "CLOSE object": ('["CLOSE",{}]', "CLOSE sub_id must be a string"),
    "AUTH without": ('["AUTH"]', "AUTH requires event object"),
    "AUTH missing": ('["AUTH",{}]', "invalid auth event: missing field `id`"),
}

# The end of these texts is the parser's, and no part of the contract.
BEGINNINGS: dict[str, tuple[str, str]] = {
    "half a message": ("{", "JSON parse error: "),
    "nothing": ("", "JSON parse error: "),
    "NaN": ("[NaN]", "JSON parse error: "),
    "Infinity": ("[-Infinity]", "JSON parse error: "),
    "more behind": ('["REQ","s"]x', "JSON parse error: "),
    "half a character": ('["\\ud800"]', "JSON parse error: "),
    "too deep": ("[" * 200 + "]" * 200, "JSON parse error: "),
    "EVENT no object": ('["EVENT",1]', "invalid event: "),
    "EVENT kind": (wire("EVENT", EVENT | {"kind": 65536}), "invalid event: "),
    "EVENT kind with a dot": (wire("EVENT", EVENT | {"kind": 1.0}), "invalid event: "),
    "EVENT time below zero": (wire("EVENT", EVENT | {"created_at": -1}), "invalid event: "),
    "EVENT time as text": (wire("EVENT", EVENT | {"created_at": "1"}), "invalid event: "),
    "EVENT time as truth": (wire("EVENT", EVENT | {"created_at": True}), "invalid event: "),
    "EVENT content": (wire("EVENT", EVENT | {"content": None}), "invalid event: "),
    "EVENT tag of numbers": (wire("EVENT", EVENT | {"tags": [["e", 1]]}), "invalid event: "),
    "EVENT signature": (wire("EVENT", EVENT | {"sig": EVENT["sig"][1:]}), "invalid event: "),
    "AUTH no object": ('["AUTH","challenge"]', "invalid auth event: "),
    "REQ no object": ('["REQ","s",1]', "invalid filter: "),
    "REQ kind": ('["REQ","s",{"kinds":[65537]}]', "invalid filter: "),
    "REQ half an id": ('["REQ","s",{"ids":["abcd"]}]', "invalid filter: "),
    "REQ time below zero": ('["REQ","s",{"since":-1}]', "invalid filter: "),
    "REQ limit below zero": ('["REQ","s",{"limit":-1}]', "invalid filter: "),
    "COUNT half an author": ('["COUNT","s",{"authors":["abcd"]}]', "invalid filter: "),
}


async def still_answers(client: Client) -> None:
    await client.send("CLOSE", "alive")
    assert await client.receive() == ["CLOSED", "alive", ""]


async def test_each_malformed_message_gets_one_notice(relay: RelayUnderTest) -> None:
    """Before the login as well; never an OK or a CLOSED, since the id is not known to be one."""
    client = await relay.connect()
    for name, (text, detail) in MALFORMED.items():
        await client.send_text(text)
        assert await client.receive() == ["NOTICE", PREFIX + detail], name
    for name, (text, beginning) in BEGINNINGS.items():
        await client.send_text(text)
        verb, notice = await client.receive()
        assert verb == "NOTICE"
        assert notice.startswith(PREFIX + beginning), (name, notice)
    await still_answers(client)


async def test_elements_beyond_the_needed_ones_are_ignored(relay: RelayUnderTest) -> None:
    client = await relay.connect()
    await client.send("AUTH", fields(auth_event(ALICE, client.challenge)), {"more": 1})
    assert (await client.receive())[2] is True
    event = ALICE.sign(1, "y")
    await client.send("EVENT", fields(event), "more", None)
    assert await client.receive() == ["OK", event.id, True, ""]
    await client.send("CLOSE", "s", 1, [2])
    assert await client.receive() == ["CLOSED", "s", ""]


async def test_a_name_to_close_may_be_any_string(relay: RelayUnderTest) -> None:
    client = await relay.connect()
    for name in ("", "x" * 1000):
        await client.send("CLOSE", name)
        assert await client.receive() == ["CLOSED", name, ""]


async def test_a_request_without_filters_is_legal(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    assert await client.request("s") == []
    await client.publish(ALICE.sign(1, "matches nothing"))
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
