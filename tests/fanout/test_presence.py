"""Presence: what counts as a status, how long it lasts, and that it ends with the last connection of its key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.fanout.presence import STATUS_BYTES_MAX, Presence, status_of
from tests.fanout.wire import Clock
from tests.fanout.world import running_hub
from tests.support.core import ALICE, BOB, Person

SECONDS = 90.0
A, B, C = "a" * 64, "b" * 64, "c" * 64


def presence(clock: Clock | None = None) -> Presence:
    return Presence(SECONDS, clock or Clock())


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("online", "online"),
        ("", ""),
        ('{"status":"away"}', "away"),
        ('{ "status": "dnd", "since": 5 }', "dnd"),
        ('{"status":5}', '{"status":5}'),
        ('{"mood":"good"}', '{"mood":"good"}'),
        ("{not JSON", "{not JSON"),
        ('["status"]', '["status"]'),
        ("x" * 129, "x" * 128),
        ('{"status":"' + "y" * 500 + '"}', "y" * 128),
        ("€" * 43, "€" * 42),
        ("x" + "\U0001f600" * 40, "x" + "\U0001f600" * 31),
    ],
)
def test_what_an_event_says(content: str, status: str) -> None:
    assert status_of(content) == status
    kept = presence()
    kept.update(A, content)
    assert kept.status([A]) == {A: status}


@given(st.text(max_size=200))
def test_a_status_is_the_longest_beginning_that_fits(content: str) -> None:
    if content.startswith("{"):
        content = "x" + content
    status = status_of(content)
    assert content.startswith(status)
    assert len(status.encode()) <= STATUS_BYTES_MAX
    assert len(content[: len(status) + 1].encode()) > STATUS_BYTES_MAX or status == content


@pytest.mark.parametrize("content", ["offline", '{"status":"offline"}'])
def test_offline_takes_it_back(content: str) -> None:
    kept = presence()
    kept.update(A, "online")
    kept.update(B, "online")
    kept.update(A, content)
    kept.update(C, content)
    assert kept.status([A, B, C]) == {B: "online"}
    assert len(kept) == 1


def test_a_status_lasts_so_long_and_no_longer() -> None:
    clock = Clock()
    kept = presence(clock)
    kept.update(A, "online")
    clock.now += SECONDS - 1
    kept.update(B, "away")
    assert kept.status([A, B]) == {A: "online", B: "away"}
    clock.now += 1
    assert kept.status([A, B]) == {B: "away"}
    kept.update(B, "back")  # said again, it lasts as long again
    clock.now += SECONDS - 1
    assert kept.status([A, B]) == {B: "back"}
    clock.now += 1
    assert kept.status([A, B]) == {}


def test_what_is_out_of_date_is_dropped_when_something_comes() -> None:
    clock = Clock()
    kept = presence(clock)
    for number in range(1000):
        kept.update(f"{number:064x}", "online")
    kept.update(f"{0:064x}", "again")  # one entry a key
    assert len(kept) == 1000
    clock.now += SECONDS / 2
    kept.update(A, "online")
    clock.now += SECONDS / 2
    kept.update(B, "online")
    assert len(kept) == 2
    assert kept.status([A, B, f"{0:064x}"]) == {A: "online", B: "online"}


def test_clearing_is_harmless_for_who_is_not_there() -> None:
    kept = presence()
    kept.update(A, "online")
    kept.clear(A)
    kept.clear(A)
    kept.clear(B)
    assert kept.status([A, B]) == {}


async def test_it_ends_with_the_last_connection_of_a_key() -> None:
    kept = presence()
    async with running_hub({}, presence=kept) as world:
        hub = world.hub
        assert hub.presence is kept
        phone, laptop, other = world.client(ALICE), world.client(ALICE), world.client(BOB)
        for person in (ALICE, BOB):
            hub.presence.update(person.pubkey, "online")
        hub.disconnect(phone)
        hub.disconnect(phone)
        assert kept.status([ALICE.pubkey, BOB.pubkey]) == {ALICE.pubkey: "online", BOB.pubkey: "online"}
        hub.disconnect(laptop)
        assert kept.status([ALICE.pubkey, BOB.pubkey]) == {BOB.pubkey: "online"}
        hub.disconnect(other)
        assert len(kept) == 0


async def test_who_never_logged_in_takes_nothing_from_a_key() -> None:
    async with running_hub({}) as world:
        stranger = world.client(BOB)
        world.hub.disconnect(stranger)
        stranger.caller = Person.number(1).caller
        world.hub.presence.update(ALICE.pubkey, "online")
        world.hub.disconnect(stranger)
        assert world.hub.presence.status([ALICE.pubkey]) == {ALICE.pubkey: "online"}
