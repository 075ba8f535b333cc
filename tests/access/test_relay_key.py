"""The relay's key: made once, kept safe, never another one by accident."""

from __future__ import annotations

import stat

import pytest

from relay.access import relay_key
from relay.asyncpg_trio import Pool, connect
from relay.config import Settings, load
from relay.errors import ConfigError
from relay.nostr import nip19
from relay.nostr.keys import SecretKey
from relay.store import migrate, relay_identity

HEX = "11" * 32


@pytest.fixture
def settings() -> Settings:
    return load({})


def test_it_is_made_once_and_found_again(settings, tmp_path):
    first = relay_key.obtain(settings, tmp_path / "new")
    assert relay_key.obtain(settings, tmp_path / "new").public_hex == first.public_hex
    assert relay_key.obtain(settings, tmp_path / "other").public_hex != first.public_hex


def test_its_file_is_for_the_owner_alone_and_nothing_else_is_left(settings, tmp_path):
    relay_key.obtain(settings, tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == relay_key.FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_that_another_process_has_just_made_is_taken(settings, tmp_path, monkeypatch):
    path = tmp_path / relay_key.FILE_NAME
    new_secret = relay_key._new_secret

    def overtaken() -> str:
        path.write_text(HEX)
        return new_secret()

    monkeypatch.setattr(relay_key, "_new_secret", overtaken)
    assert relay_key.obtain(settings, tmp_path).public_hex == SecretKey.from_hex(HEX).public_hex
    assert [entry.name for entry in tmp_path.iterdir()] == [relay_key.FILE_NAME]


@pytest.mark.parametrize("text", [HEX, HEX.upper(), f" {HEX}\n", nip19.encode_nsec(HEX)])
def test_the_setting_wins_in_either_spelling(text, tmp_path):
    key = relay_key.obtain(load({"relay_private_key": text}), tmp_path)
    assert key.public_hex == SecretKey.from_hex(HEX).public_hex
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["secretsecret", "00" * 32, "11" * 31, "nsec1secretsecret", nip19.encode_npub(HEX)])
def test_what_is_no_key_is_refused_without_being_shown(text, tmp_path):
    with pytest.raises(ConfigError, match="SPROUT_RELAY_PRIVATE_KEY: not a secret key") as caught:
        relay_key.obtain(load({"relay_private_key": text}), tmp_path)
    assert text not in str(caught.value)


def test_a_file_that_was_damaged_is_refused_by_name_and_not_replaced(settings, tmp_path):
    path = tmp_path / relay_key.FILE_NAME
    path.write_text("half a ke")
    with pytest.raises(ConfigError, match=relay_key.FILE_NAME):
        relay_key.obtain(settings, tmp_path)
    assert path.read_text() == "half a ke"


def test_a_directory_that_cannot_be_made_is_refused(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept there"):
        relay_key.obtain(settings, tmp_path / "file" / "data")


async def test_the_first_node_is_recorded_and_a_stranger_is_refused(empty_dsn):
    connection = await connect(empty_dsn)
    await migrate.up(connection)
    await connection.close()
    first, stranger = SecretKey.from_hex(HEX), SecretKey.from_hex("22" * 32)
    async with Pool(empty_dsn, size_min=1) as pool:
        assert await relay_identity.get(pool) is None
        await relay_key.confirm(pool, first)
        await relay_key.confirm(pool, first)
        assert await relay_identity.get(pool) == first.public_hex
        with pytest.raises(ConfigError, match="SPROUT_RELAY_PRIVATE_KEY") as caught:
            await relay_key.confirm(pool, stranger)
        assert first.public_hex in str(caught.value)
        assert HEX not in str(caught.value)
