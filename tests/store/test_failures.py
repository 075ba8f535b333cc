"""Whose fault it is: the store's trouble is worth another try, a bug of ours is not; being busy is a trouble too."""

from __future__ import annotations

import pytest

from relay.asyncpg_trio import errors
from relay.errors import INTERNAL_ERROR, STORE_UNAVAILABLE, MigrationError, StoreBusy, StoreGone
from relay.store.failures import is_busy, is_unavailable, refusal


def answer(code: str) -> errors.PostgresError:
    found: errors.PostgresError = errors.PostgresError.new({"C": code, "M": "said the server"})
    return found


BUSY = [
    errors.PoolTimeout("x"),
    errors.StatementTimeout("x"),
    StoreBusy("x"),
    *map(answer, ("55P03", "57014", "53300")),
]
TROUBLE = [
    errors.ConnectionLost("x"),
    errors.ConnectFailed("x"),
    errors.CommitOutcomeUnknown("x"),
    errors.PoolClosed("x"),
    StoreGone("x"),
    *map(answer, ("08006", "25006", "28P01", "3D000", "40001", "40P01", "53100", "57P01", "57P03", "58030")),
]
OURS = [*map(answer, ("42601", "42P01", "22P02", "23505", "25P02", "XX000")), MigrationError("x"), ValueError("x")]


@pytest.mark.parametrize("error", BUSY, ids=repr)
def test_busy(error: Exception) -> None:
    assert is_busy(error)
    assert is_unavailable(error)


@pytest.mark.parametrize("error", TROUBLE, ids=repr)
def test_trouble(error: Exception) -> None:
    assert not is_busy(error)
    assert is_unavailable(error)
    assert refusal(error) is STORE_UNAVAILABLE


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_a_bug_of_ours(error: Exception) -> None:
    assert not is_busy(error)
    assert not is_unavailable(error)
    assert refusal(error) is INTERNAL_ERROR


def test_a_group_is_trouble_where_all_of_it_is() -> None:
    assert is_unavailable(ExceptionGroup("", [TROUBLE[0], ExceptionGroup("", [BUSY[0]])]))
    assert not is_unavailable(ExceptionGroup("", [TROUBLE[0], OURS[0]]))


def test_a_lost_connection_with_a_reason_of_the_servers() -> None:
    """What counts is that the connection is gone, whatever the server said last."""
    lost = errors.ConnectionLost("x")
    lost.__cause__ = answer("42601")
    assert is_unavailable(lost)


def test_both_refusals_read_the_same_to_a_socket() -> None:
    assert STORE_UNAVAILABLE.text == INTERNAL_ERROR.text
    assert (STORE_UNAVAILABLE.kind.http_status, INTERNAL_ERROR.kind.http_status) == (503, 500)
