"""Callers with less than all rights, without the tokens that would give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.core import Person
from tests.support.relay import RelayUnderTest


def limit(relay: RelayUnderTest, person: Person, monkeypatch: pytest.MonkeyPatch, **rights: Any) -> None:
    """From now on this person's connections have these rights instead of the whole: `scopes`, `channel_ids`."""
    for session in relay.endpoint._sessions:
        if session.caller is not None and session.caller.pubkey == person.pubkey:
            monkeypatch.setattr(session, "caller", replace(person.caller, **rights))
