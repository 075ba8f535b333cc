"""GET /audit/...: what an auditor gets, that nobody else gets anything, and a log that is not what was signed."""

from __future__ import annotations

import pytest

from relay.audit import checkpoints, note, proofs
from relay.nostr.keys import SecretKey
from tests.support.audit_log import grow, sign_log, unprotect
from tests.support.http import Rig, new_key, running

PATHS = ("/audit/checkpoint", "/audit/proof/1", "/audit/consistency?from=3&to=5")


async def prepared(rig: Rig, *sizes: int) -> str:
    """A log with checkpoints of these sizes; the token of an auditor."""
    for size in sizes:
        await grow(rig.con, size - await rig.con.fetchval("SELECT count(*) FROM audit_log"))
        await sign_log(rig.con, rig.services.relay_key, size)
    return await rig.mint(new_key(), ["audit:read"])


async def test_what_an_auditor_gets_can_be_checked_anywhere(rig: Rig):
    token, pubkey = await prepared(rig, 3, 5), rig.services.relay_key.public_hex
    newest = await rig.get("/audit/checkpoint", token=token)
    assert (newest.status, newest.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert newest.headers["cache-control"] == "no-store"
    older = await rig.get("/audit/checkpoint?size=3", token=token)
    assert [note.parse(each.text).size for each in (newest, older)] == [5, 3]
    for path in ("/audit/proof/2", "/audit/proof/2?size=3", "/audit/consistency?from=3&to=5"):
        found = await rig.get(path, token=token)
        assert (found.status, found.headers["cache-control"]) == (200, "no-store")
        assert proofs.check(found.body, pubkey)
    assert proofs.check(newest.body, pubkey)
    assert (await rig.get("/audit/proof/2?size=3", token=token)).json["size"] == 3


async def test_cosignatures_are_shown(rig: Rig):
    token, witness = await prepared(rig, 2), SecretKey.from_bytes(bytes([7]) * 32)
    shown = note.parse((await rig.get("/audit/checkpoint", token=token)).text)
    name = f"relay-witness/{witness.public_hex}"
    line = note.cosign(shown, name, witness, 1_700_000_000)
    await checkpoints.add_cosignatures(rig.con, shown.origin, 2, [(name, line)])
    said = proofs.check((await rig.get("/audit/proof/1", token=token)).body)
    assert said[-1] == f"cosigned by {name} at 2023-11-14T22:13:20Z"


async def test_nobody_else_gets_anything(rig: Rig):
    token, key = await prepared(rig, 3, 5), new_key()
    channel = await rig.channel(key)
    others = await rig.mint(key, ["messages:read", "channels:read", "users:read", "proxy:submit"])
    restricted = await rig.mint(key, ["audit:read"], [channel])
    for path in PATHS:
        assert (await rig.get(path, token=token)).status == 200
        for refused, status in (
            (await rig.get(path), 401),
            (await rig.get(path, token="sprout_" + "0" * 64), 401),
            (await rig.get(path, headers={"Authorization": "Nostr e30="}), 401),
            (await rig.get(path, key=key), 401),
            (await rig.get(path, key=key, headers={"Authorization": "Basic x"}), 403),
            (await rig.get(path, token=others), 403),
            (await rig.get(path, token=restricted), 403),
        ):
            assert (refused.status, refused.headers["content-type"]) == (status, "application/problem+json")
    await rig.con.execute("UPDATE api_tokens SET revoked_at = now()")
    assert (await rig.get(PATHS[0], token=token)).status == 401


async def test_nobody_makes_himself_an_auditor(rig: Rig):
    token, wanted = await prepared(rig, 1), {"name": "x", "scopes": ["audit:read"]}
    for credential in ({"key": new_key()}, {"token": token}):
        found = await rig.post("/api/tokens", json=wanted, **credential)
        assert (found.status, found.json["message"]) == (400, "scope requires admin: audit:read")


async def test_what_no_checkpoint_covers_is_not_found(rig: Rig):
    token = await rig.mint(new_key(), ["audit:read"])
    found = await rig.get("/audit/checkpoint", token=token)
    assert (found.status, found.json["detail"]) == (404, "the log has no checkpoint yet")
    await prepared(rig, 3)
    await grow(rig.con, 2)
    for path in (
        "/audit/checkpoint?size=4",
        "/audit/proof/4",
        "/audit/proof/1?size=5",
        f"/audit/proof/{2**63 - 1}",
        "/audit/consistency?from=3&to=5",
        "/audit/consistency?from=5&to=3",
    ):
        found = await rig.get(path, token=token)
        assert (found.status, found.json["error"]) == (404, "not covered by a checkpoint"), path


@pytest.mark.parametrize(
    "path",
    ["/audit/proof/0", "/audit/proof/x", "/audit/proof/01", "/audit/proof/-1", "/audit/proof/1.0",
     f"/audit/proof/{2**63}", "/audit/proof/1?size=", "/audit/proof/1?size=-1", "/audit/checkpoint?size=x",
     f"/audit/checkpoint?size={2**63}", "/audit/checkpoint?size=1&size=1", "/audit/consistency",
     "/audit/consistency?from=1", "/audit/consistency?from=-1&to=1"],
)  # fmt: skip
async def test_what_cannot_be_read(rig: Rig, path: str):
    token = await rig.mint(new_key(), ["audit:read"])
    found = await rig.get(path, token=token)
    assert (found.status, found.json["status"]) == (400, 400)


async def test_a_log_that_is_not_what_was_signed_is_told_as_it_is(rig: Rig):
    token = await prepared(rig, 3, 5)
    await unprotect(rig.con)
    await rig.con.execute("UPDATE audit_log SET hash = sha256(hash) WHERE seq = 2")
    for path, said in (
        ("/audit/proof/2", "the hash of entry 2 is not that of its fields"),
        ("/audit/proof/4", "entry 4 is not under the root of the checkpoint at 5 entries"),
    ):
        found = await rig.get(path, token=token)
        assert (found.status, found.json["error"], found.json["detail"]) == (
            500,
            "the audit log is not what was signed",
            said,
        )


async def test_a_key_that_asks_too_often_waits(migrated_dsn: str):
    async with running(migrated_dsn, rate_requests=2) as rig:
        token = await prepared(rig, 1)
        found = [(await rig.get("/audit/proof/1", token=token)).status for _ in range(60)]
        assert found[0] == 200
        assert found[-1] == 429
