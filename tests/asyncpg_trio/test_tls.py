"""TLS by sslmode: who encrypts, who verifies, and everything else through the encrypted line."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme
from asyncpg import connect_utils

from relay.asyncpg_trio import ConnectFailed, Connection, ConnectionLost, connect, errors
from tests.asyncpg_trio.tls_front import TLSFront, open_tls_front


@pytest.fixture
def database(empty_dsn: str) -> str:
    return empty_dsn.split("/")[3].split("?")[0]


@pytest.fixture
async def front(socket_path: str) -> AsyncIterator[TLSFront]:
    async with open_tls_front(socket_path) as front:
        yield front


@pytest.fixture
def authority(front: TLSFront, tmp_path: Path) -> Path:
    front.authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    return tmp_path / "authority.pem"


async def ask(dsn: str) -> None:
    connection = await connect(dsn)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.parametrize(
    ("mode", "encrypted", "plain"), [("disable", 0, 1), ("allow", 0, 1), ("prefer", 1, 0), ("require", 1, 0)]
)
async def test_who_encrypts(front: TLSFront, database: str, mode: str, encrypted: int, plain: int):
    await ask(front.dsn(database, f"sslmode={mode}"))
    assert (front.encrypted, front.plain) == (encrypted, plain)


async def test_allow_turns_to_tls_where_plain_is_refused(front: TLSFront, database: str):
    front.tls_only = True
    await ask(front.dsn(database, "sslmode=allow"))
    assert (front.encrypted, front.plain) == (1, 1)
    with pytest.raises(errors.PostgresError) as caught:
        await connect(front.dsn(database, "sslmode=disable"))
    assert errors.sqlstate(caught.value) == "28000"


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_certificate_of_the_given_authority_is_accepted(
    front: TLSFront, database: str, authority: Path, mode: str
):
    await ask(front.dsn(database, f"sslmode={mode}&sslrootcert={authority}"))
    assert front.encrypted == 1


async def test_a_certificate_of_another_authority_is_refused(front: TLSFront, database: str, tmp_path: Path):
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with pytest.raises(ConnectFailed) as caught:
        await connect(front.dsn(database, f"sslmode=verify-ca&sslrootcert={stranger}"))
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert not caught.value.transient
    assert front.plain == 0


async def test_a_certificate_for_another_name_is_refused_by_verify_full_only(
    front: TLSFront, database: str, authority: Path
):
    dsn = front.dsn(database, f"sslmode=verify-ca&sslrootcert={authority}").replace("localhost", "127.0.0.1")
    await ask(dsn)
    with pytest.raises(ConnectFailed) as caught:
        await connect(dsn.replace("verify-ca", "verify-full"))
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_direct_negotiation(front: TLSFront, database: str):
    if not hasattr(connect_utils, "SSLNegotiation"):
        pytest.skip("this asyncpg does not know sslnegotiation")
    await ask(front.dsn(database, "sslmode=require&sslnegotiation=direct"))
    assert (front.encrypted, front.plain) == (1, 0)


@pytest.fixture
async def encrypted(front: TLSFront, database: str) -> AsyncIterator[Connection]:
    connection = await connect(front.dsn(database, "sslmode=require"))
    yield connection
    connection.terminate()


async def test_large_values(encrypted: Connection):
    value = bytes(range(256)) * 20_000
    assert await encrypted.fetchval("SELECT $1::bytea || $1::bytea", value) == value + value


async def test_cancellation_and_its_second_connection(encrypted: Connection, other: Connection, front: TLSFront):
    pid = encrypted.backend_pid
    value = b"x" * 5_000_000
    for query, arguments in (("SELECT pg_sleep(60)", []), ("SELECT length($1::bytea), pg_sleep(60)", [value])):
        for _ in range(2):
            with trio.move_on_after(0.15) as scope:
                await encrypted.fetch(query, *arguments)
            assert scope.cancelled_caught
            assert await encrypted.fetchval("SELECT pg_backend_pid()") == pid
            assert await other.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"
    assert front.encrypted >= 5
    assert front.plain == 0


async def test_session_tickets_in_the_socket_are_no_sign_of_death(encrypted: Connection):
    for _ in range(3):
        assert encrypted.is_alive()
        assert await encrypted.fetchval("SELECT 1") == 1


async def test_an_ended_session_is_seen_by_the_peek(encrypted: Connection, other: Connection):
    await other.fetchval("SELECT pg_terminate_backend($1)", encrypted.backend_pid)
    with trio.fail_after(2):
        while encrypted.is_alive():
            await trio.sleep(0.005)
    assert not encrypted.is_alive()


async def test_notifications_that_came_while_idle_survive_the_peek(encrypted: Connection, other: Connection):
    async with encrypted.listen("c") as notifications:
        await other.execute("NOTIFY c, 'x'")
        with trio.fail_after(2):
            while not encrypted._session.notified:
                assert encrypted.is_alive()
                await trio.sleep(0.005)
        assert notifications.receive_nowait().payload == "x"


async def test_a_line_cut_in_the_middle(encrypted: Connection, front: TLSFront):
    front.cut_before = b"cut here"
    with pytest.raises(ConnectionLost):
        await encrypted.execute("SELECT 'cut here'")
    assert encrypted.is_closed()


async def test_garbage_in_the_encrypted_stream_ends_the_session(front: TLSFront, database: str):
    """A peer that breaks TLS's rules is an error of the connection, not of the program."""
    connection = await connect(front.dsn(database, "sslmode=require"))
    connection._wire.tls._incoming.write(b"\x17\x03\x03\x00\x10" + b"garbage" * 3)
    with pytest.raises(ConnectionLost) as caught:
        await connection.fetch("SELECT 1")
    assert connection.is_closed()
    assert isinstance(caught.value.__cause__, (ssl.SSLError, Exception))
