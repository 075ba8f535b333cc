"""What somebody can do who has the address of the OpenAPI document, a key, and nothing else: make a channel, read it.

On a relay as it is installed: no token made by an operator, no development switch, no knowledge of a path.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.e2e.document_client import Credential, DocumentClient, signed_by, token
from tests.support.core import Person
from tests.support.launching import Launched
from tests.support.relay import fields

pytestmark = pytest.mark.slow

ALICE, BOB = Person.number(4001), Person.number(4002)
SCOPES = ["channels:read", "channels:write", "messages:read", "messages:write"]


@pytest.fixture
def client(relay: Launched) -> Iterator[DocumentClient]:
    with DocumentClient(relay.url.replace("ws://", "http://") + "/openapi.json") as found:
        yield found


def minted(client: DocumentClient, person: Person) -> Credential:
    status, body = client.call("mintToken", signed_by(person), body={"name": "from the document", "scopes": SCOPES})
    assert status == 201, body
    return token(body["token"])


def created(client: DocumentClient, by: Person, operation: str, credential: Credential, visibility: str) -> str:
    """The id of a channel that this event made, sent in by this operation."""
    channel_id = str(uuid.uuid4())
    event = by.sign(9007, tags=[["h", channel_id], ["name", "documented"], ["visibility", visibility]])
    status, body = client.call(operation, credential, body=fields(event))
    assert (status, body) == (200, {"event_id": event.id, "accepted": True, "message": ""})
    return channel_id


def test_with_a_token(client: DocumentClient):
    alice, bob = minted(client, ALICE), minted(client, BOB)
    channel_id = created(client, ALICE, "submitEvent", alice, "private")

    status, channel = client.call("getChannel", alice, channel_id=channel_id)
    assert status == 200
    assert {key: channel[key] for key in ("id", "name", "visibility", "created_by", "member_count")} == {
        "id": channel_id,
        "name": "documented",
        "visibility": "private",
        "created_by": ALICE.pubkey,
        "member_count": 1,
    }
    assert channel_id in [each["id"] for each in client.call("listChannels", alice)[1]]

    said = ALICE.sign(9, "read from the document", [["h", channel_id]])
    assert client.call("submitEvent", alice, body=fields(said))[0] == 200
    status, page = client.call("listMessages", alice, channel_id=channel_id, kinds="9", limit=1)
    assert (status, [each["event_id"] for each in page["messages"]]) == (200, [said.id])

    assert client.call("getChannel", bob, channel_id=channel_id) == (403, {"error": "not a member of this channel"})
    assert client.call("revokeAllTokens", alice) == (200, {"revoked_count": 1})
    assert client.call("listChannels", alice) == (401, {"error": "token_revoked"})


def test_with_signed_requests_alone(client: DocumentClient):
    channel_id = created(client, ALICE, "publishEvent", signed_by(ALICE), "private")
    said = ALICE.sign(9, "over the bridge", [["h", channel_id]])
    assert client.call("publishEvent", signed_by(ALICE), body=fields(said))[0] == 200
    filters = [{"kinds": [9], "#h": [channel_id]}]
    assert client.call("queryEvents", signed_by(ALICE), body=filters) == (200, [fields(said)])
    assert client.call("countEvents", signed_by(ALICE), body=filters) == (200, {"count": 1})
    assert client.call("queryEvents", signed_by(BOB), body=filters) == (200, [])
