"""One entry of the audit log, before it has a place in the chain.

In: an action and what it concerned. Out: a frozen `Entry` whose every field comes back from the database byte for byte,
which is what makes its hash worth anything: text that PostgreSQL cannot keep is refused here, with a sentence, and not
by the server in the middle of somebody's transaction. Metadata is JSON *text* from here on: nobody parses and prints
it again, so nobody can print it differently.

Pure: no clock and no randomness; `time_us` and `uuid` are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from relay.errors import AuditError

# A signed login is a credential: whoever reads the log could replay it elsewhere.
KIND_AUTH = 22242
# Nobody's metadata needs more; an entry must stay cheap enough to hash and insert by the hundred.
METADATA_BYTES_MAX = 64 * 1024
# The width that the original's columns had for the same fields.
TEXT_CHARACTERS_MAX = 255
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Action(StrEnum):
    """What an entry says was done. The value is what is stored and hashed: never change one."""

    # The original's eleven.
    EVENT_CREATED = "event_created"
    EVENT_DELETED = "event_deleted"
    CHANNEL_CREATED = "channel_created"
    CHANNEL_UPDATED = "channel_updated"
    CHANNEL_DELETED = "channel_deleted"
    MEMBER_ADDED = "member_added"
    MEMBER_REMOVED = "member_removed"
    AUTH_SUCCESS = "auth_success"
    AUTH_FAILURE = "auth_failure"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    MEDIA_UPLOADED = "media_uploaded"
    # Ours: credentials and settings, which the original changes without a trace, and what was refused.
    TOKEN_CREATED = "token_created"  # noqa: S105  # the name of an action
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    SETTINGS_CHANGED = "settings_changed"
    MEDIA_DELETED = "media_deleted"
    EVENT_REFUSED = "event_refused"
    ACCESS_REFUSED = "access_refused"


ORIGINAL_ACTIONS: frozenset[str] = frozenset(
    {
        Action.EVENT_CREATED,
        Action.EVENT_DELETED,
        Action.CHANNEL_CREATED,
        Action.CHANNEL_UPDATED,
        Action.CHANNEL_DELETED,
        Action.MEMBER_ADDED,
        Action.MEMBER_REMOVED,
        Action.AUTH_SUCCESS,
        Action.AUTH_FAILURE,
        Action.RATE_LIMIT_EXCEEDED,
        Action.MEDIA_UPLOADED,
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One audited action.

    `time_us` is microseconds since 1970 by the relay's clock, when the action was admitted. `uuid` and `channel_id`
    are canonical lowercase uuids. `event_id` is an event's id in hex, or the SHA-256 of a media file. `metadata` is the
    text of a JSON object, `{}` where there is nothing to say: one spelling for "nothing", so that no two entries differ
    only in how they say it. Rows imported from the original keep the metadata they had there (mostly `null`).
    """

    uuid: str
    time_us: int
    action: str
    actor: str | None
    event_id: str | None
    kind: int | None
    channel_id: str | None
    metadata: str


def new_entry(
    action: Action,
    *,
    time_us: int,
    uuid: str,
    actor: str | None = None,
    event_id: str | None = None,
    kind: int | None = None,
    channel_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Entry:
    """A checked entry, ready for `outbox.insert`.

    Raises:
        AuditError: the kind is that of an AUTH event, or a field would not survive the database unchanged.
    """
    if kind == KIND_AUTH:
        raise AuditError(f"an AUTH event (kind {KIND_AUTH}) must never be in the audit log")
    if not 0 <= time_us <= INT64_MAX:
        raise AuditError(f"time_us does not fit 63 bits: {time_us}")
    if kind is not None and not 0 <= kind <= INT32_MAX:
        raise AuditError(f"kind does not fit 31 bits: {kind}")
    _check_uuid("uuid", uuid)
    if channel_id is not None:
        _check_uuid("channel_id", channel_id)
    _check_text("actor", actor)
    _check_text("event_id", event_id)
    text = canonical_json(metadata) if metadata else "{}"
    if len(text.encode()) > METADATA_BYTES_MAX:
        raise AuditError(f"metadata is longer than {METADATA_BYTES_MAX} bytes")
    return Entry(uuid, time_us, Action(action).value, actor, event_id, kind, channel_id, text)


def columns(entries: Sequence[Entry]) -> tuple[list[Any], ...]:
    """The fields of all entries as lists, in the order of the columns that outbox and log share (uuid to metadata)."""
    return (
        [entry.uuid for entry in entries],
        [entry.time_us for entry in entries],
        [entry.action for entry in entries],
        [entry.actor for entry in entries],
        [entry.event_id for entry in entries],
        [entry.kind for entry in entries],
        [entry.channel_id for entry in entries],
        [entry.metadata for entry in entries],
    )


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, non-ASCII as it is. NUL in a string becomes the escape `\\u0000`.

    Raises:
        AuditError: something that JSON has no text for (lone surrogates, integers beyond 64 bits, foreign types).
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError) as error:
        raise AuditError(f"metadata is not JSON: {error}") from error


def is_canonical_uuid(text: str) -> bool:
    """The one spelling that the database gives back: lowercase, with hyphens."""
    return _UUID.fullmatch(text) is not None


def _check_uuid(name: str, text: str) -> None:
    if not is_canonical_uuid(text):
        raise AuditError(f"{name} is not a lowercase uuid with hyphens: {text!r}")


def _check_text(name: str, text: str | None) -> None:
    if text is None:
        return
    if "\0" in text:
        raise AuditError(f"{name} has a NUL character, which PostgreSQL cannot keep")
    if len(text) > TEXT_CHARACTERS_MAX:
        raise AuditError(f"{name} is longer than {TEXT_CHARACTERS_MAX} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AuditError(f"{name} has a lone surrogate, which has no UTF-8") from None
