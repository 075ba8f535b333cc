"""Callers with less than all rights, without the tokens that would give them; members who are members no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.core import Person
from tests.support.relay import Client, RelayUnderTest


def limit(relay: RelayUnderTest, person: Person, monkeypatch: pytest.MonkeyPatch, **rights: Any) -> None:
    """From now on this person's connections have these rights instead of the whole: `scopes`, `channel_ids`."""
    for session in relay.endpoint._sessions:
        if session.caller is not None and session.caller.pubkey == person.pubkey:
            monkeypatch.setattr(session, "caller", replace(person.caller, **rights))


async def remove(client: Client, owner: Person, channel: str, member: Person) -> None:
    """An owner takes a member out of the channel, through this connection. Returns when the removal has its OK."""
    event = owner.sign(9001, tags=[["h", channel], ["p", member.pubkey]])
    assert (await client.publish(event))[2:] == [True, ""]
