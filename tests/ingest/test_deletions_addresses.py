"""Kind 5 with an `a` tag: every version of an address, up to a time."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relay.ingest.deletions import Address, parse_address
from relay.nostr.event import Event
from tests.support.core import ALICE, BOB, running_core
from tests.support.deleting import (
    HOLD_EVENT,
    at,
    audited,
    delete,
    live,
    publish,
)
from tests.support.locks import held, waiting


@pytest.mark.parametrize(("kind", "d"), [(30023, "page"), (30023, ""), (3, "")])
async def test_an_address_takes_back_every_version_up_to_its_time(migrated_dsn: str, kind: int, d: str) -> None:
    now = at(0)
    async with running_core(migrated_dsn) as core:
        tags = [["d", d]] if d else []
        address = ["a", f"{kind}:{ALICE.pubkey}:{d}"]
        other = await publish(core, ALICE, ALICE.sign(30023, "other", [["d", "other"]], at=now - 10))
        theirs = await publish(core, BOB, BOB.sign(kind, "theirs", tags, at=now - 10))
        version = await publish(core, ALICE, ALICE.sign(kind, "1", tags, at=now - 5))
        deletion = ALICE.sign(5, tags=[address], at=now - 5)
        await publish(core, ALICE, deletion)
        assert (await live(core, version), await live(core, other), await live(core, theirs)) == (False, True, True)
        assert await audited(core) == [(deletion.id, {"target": version.id})]
        barred = "invalid: event was deleted by its author"
        assert (await core.submit(ALICE, ALICE.sign(kind, "older", tags, at=now - 6))).message == barred
        assert (await core.submit(ALICE, ALICE.sign(kind, "same", tags, at=now - 5))).message == barred
        assert (await core.submit(ALICE, deletion)).message == "duplicate:"
        # What was there and is gone may be deleted once more; what is newer than the deletion stays.
        assert await delete(core, ALICE, address, at=now - 4) == ""
        newer = await publish(core, ALICE, ALICE.sign(kind, "newer", tags, at=now - 2))
        assert await delete(core, ALICE, address, at=now - 3) == ""
        assert await live(core, newer)
        assert len(await audited(core)) == 1


@pytest.mark.parametrize(("kind", "d"), [(30023, "page"), (30023, ""), (3, "")])
async def test_an_address_whose_last_version_was_deleted_by_id_is_known(migrated_dsn: str, kind: int, d: str) -> None:
    now = at(0)
    async with running_core(migrated_dsn) as core:
        version = await publish(core, ALICE, ALICE.sign(kind, "1", [["d", d]] if d else [], at=now - 5))
        assert await delete(core, ALICE, ["e", version.id]) == ""
        assert await delete(core, ALICE, ["a", f"{kind}:{ALICE.pubkey}:{d}"]) == ""
        assert (await core.submit(ALICE, ALICE.sign(kind, "2", [["d", d]], at=now - 4))).message == (
            "invalid: event was deleted by its author"
        )


async def test_a_version_that_comes_while_its_address_is_deleted_is_barred(migrated_dsn: str) -> None:
    now = at(0)
    async with running_core(migrated_dsn) as core:
        old = await publish(core, ALICE, ALICE.sign(30023, "1", [["d", "x"]], at=now - 5))
        outcomes: dict[str, str] = {}

        async def submit(name: str, event: Event) -> None:
            outcomes[name] = (await core.submit(ALICE, event)).message

        async with trio.open_nursery() as nursery, held(core, HOLD_EVENT, bytes.fromhex(old.id)):
            nursery.start_soon(submit, "deletion", ALICE.sign(5, tags=[["a", f"30023:{ALICE.pubkey}:x"]], at=now - 1))
            await waiting(core, 1)
            nursery.start_soon(submit, "version", ALICE.sign(30023, "2", [["d", "x"]], at=now - 2))
            await waiting(core, 2)
        assert outcomes == {"deletion": "", "version": "invalid: event was deleted by its author"}
        assert 30023 not in await core.kinds()


@given(st.text(max_size=90))
def test_an_address_has_one_spelling(text: str) -> None:
    found = parse_address(text)
    assert found is None or f"{found.kind}:{found.pubkey}:{found.d}" == text


@given(st.integers(30000, 39999), st.text())
def test_any_d_makes_an_address(kind: int, d: str) -> None:
    assert parse_address(f"{kind}:{ALICE.pubkey}:{d}") == Address(kind, ALICE.pubkey, d)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:", "0:{key}", "030023:{key}:x", "٣:{key}:", "40000:{key}:x", "9:{key}:", "30023:{KEY}:x", "30023::x"],
)
def test_what_is_no_address(text: str) -> None:
    assert parse_address(text.format(key=ALICE.pubkey, KEY=ALICE.pubkey.upper())) is None
