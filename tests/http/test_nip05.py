"""/.well-known/nostr.json: who has which handle, asked by anybody from anywhere."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from relay.nostr.keys import SecretKey
from tests.support.http import Rig, new_key

PATH = "/.well-known/nostr.json"
NOTHING: dict[str, dict[str, object]] = {"names": {}, "relays": {}}
EVERYBODY = "*"


async def called(rig: Rig, handle: str) -> SecretKey:
    key = new_key()
    found = await rig.submit(key, 0, [], f'{{"nip05":"{handle}"}}')
    assert (found.status, found.json["accepted"]) == (200, True)
    return key


@pytest.mark.parametrize("name", ["ada", "ADA", "aDa", "%61da"])
async def test_a_handle(rig: Rig, name: str) -> None:
    key = await called(rig, "Ada@LocalHost")
    rig.statements.clear()
    found = await rig.get(f"{PATH}?name={name}")
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert found.json == {
        "names": {"ada": key.public_hex},
        "relays": {key.public_hex: [rig.services.settings.relay_url]},
    }
    assert len(rig.statements) == 1


async def test_the_root_of_the_domain(rig: Rig) -> None:
    key = await called(rig, "_@localhost")
    assert (await rig.get(f"{PATH}?name=_")).json["names"] == {"_": key.public_hex}


async def test_the_address_is_given_as_it_was_set(rig: Rig) -> None:
    """The domain is its host: no port, in lower case."""
    key = await called(rig, "ada@localhost")
    app = rig.with_settings(relay_url="wss://LOCALHOST:7777/path/")
    found = await rig.get(f"{PATH}?name=ada", app=app)
    assert found.json["relays"] == {key.public_hex: ["wss://LOCALHOST:7777/path/"]}
    elsewhere = rig.with_settings(relay_url="wss://relay.example")
    assert (await rig.get(f"{PATH}?name=ada", app=elsewhere)).json == NOTHING


@pytest.mark.parametrize(
    "name", ["nobody", "ada@localhost", "", " ", "ad", "ada ", "%", "a%", "_", "\0", "a\0", "x" * 10_000, "ä", "'"]
)
async def test_nobody(rig: Rig, name: str) -> None:
    await called(rig, "ada@localhost")
    found = await rig.get(f"{PATH}?name={quote(name)}")
    assert (found.status, found.json) == (200, NOTHING)


async def test_no_name(rig: Rig) -> None:
    for query in ("", "?", "?name", "?other=ada"):
        rig.statements.clear()
        found = await rig.get(PATH + query)
        assert (found.status, found.json) == (200, NOTHING)
        assert rig.statements == []


async def test_a_handle_that_is_given_up(rig: Rig) -> None:
    key = await called(rig, "ada@localhost")
    # A clash leaves it where it is.
    await called(rig, "ada@localhost")
    assert (await rig.get(f"{PATH}?name=ada")).json["names"] == {"ada": key.public_hex}
    await rig.con.execute("UPDATE users SET nip05_handle = NULL")
    assert (await rig.get(f"{PATH}?name=ada")).json == NOTHING


async def test_two_names_are_one_too_many(rig: Rig) -> None:
    found = await rig.get(f"{PATH}?name=ada&name=bob")
    assert (found.status, found.text) == (400, "Failed to deserialize query string: duplicate field `name`")
    assert found.headers["access-control-allow-origin"] == EVERYBODY


@pytest.mark.parametrize("origins", ["", "https://a.example", "https://a.example, https://b.example"])
@pytest.mark.parametrize("origin", [None, "https://a.example", "https://evil.example", "null"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_every_page_may_ask(rig: Rig, origins: str, origin: str | None, method: str) -> None:
    """One value, whatever is allowed elsewhere: a browser takes two of them for none."""
    app = rig.with_settings(cors_origins=origins)
    headers = {} if origin is None else {"Origin": origin}
    for query in ("?name=nobody", "", "?name=a&name=b"):
        found = await rig.request(method, PATH + query, headers=headers, app=app)
        values = [value for name, value in found.headers.items() if name.lower() == "access-control-allow-origin"]
        assert values == [EVERYBODY]
    # It is this answer's own: the next one over keeps to what was set.
    other = await rig.request(method, "/info", headers=headers, app=app)
    expected = EVERYBODY if not origins else origin if origin == "https://a.example" else None
    assert other.headers.get("access-control-allow-origin") == expected


async def test_an_answer_about_a_crash_can_be_read_too(rig: Rig) -> None:
    await rig.con.execute("ALTER TABLE users RENAME TO users_elsewhere")
    app = rig.with_settings(cors_origins="https://a.example")
    found = await rig.get(f"{PATH}?name=ada", app=app)
    assert (found.status, found.json) == (500, {"error": "internal server error"})
    assert found.headers["access-control-allow-origin"] == EVERYBODY
