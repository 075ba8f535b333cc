"""NIP-11: the document in which the relay says what it is, what it speaks and where its limits are.

Settings and limits go in, JSON bytes come out. The numbers in `Limits` and `Rates` are those that the parts enforce,
never others: a client that keeps to the document must not be refused. Serving the bytes is the HTTP side's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

import orjson

from relay.nostr.kinds import GIFT_WRAP
from relay.nostr.messages import FILTERS_MAX, SUB_ID_BYTES_MAX

CONTENT_TYPE: Final = "application/nostr+json"

# Clients look for 16, 23 and 33 although NIP-01 has absorbed 16 and 33, and 23 asks nothing of a relay.
SUPPORTED_NIPS: Final = (1, 2, 9, 10, 11, 16, 17, 23, 25, 29, 33, 40, 42, 45, 50, 59, 70)


@dataclass(frozen=True, slots=True)
class Limits:
    """`limitation` of NIP-11, field by field under its names there; the last one is ours.

    max_message_length, max_subid_length, max_content_length: bytes of UTF-8. Through the WebSocket the whole message
        has to fit as well, so there a content can be smaller than its own limit and still be too long.
    max_limit: a larger `limit` of a filter is not refused but cut to this; default_limit: what one without it means.
    created_at_lower_limit, created_at_upper_limit: seconds before and after the relay's clock.
    created_at_lower_limit_exempt_kinds: gift wraps are dated back at random (NIP-59), so their past has no limit.
    """

    # Clients allow texts of 64 KiB, which must fit with envelope and escapes; the original's 65 536 did not hold them.
    max_message_length: int = 131_072
    max_subscriptions: int = 1024
    max_filters: int = FILTERS_MAX
    max_limit: int = 10_000
    default_limit: int = 500
    max_subid_length: int = SUB_ID_BYTES_MAX
    max_content_length: int = 262_144
    min_pow_difficulty: int | None = None
    # Every EVENT, REQ and COUNT needs NIP-42 first, and writing needs scopes and memberships beyond that.
    auth_required: bool = True
    payment_required: bool = False
    restricted_writes: bool = True
    created_at_lower_limit: int = 900
    created_at_upper_limit: int = 900
    created_at_lower_limit_exempt_kinds: tuple[int, ...] = (GIFT_WRAP,)


@dataclass(frozen=True, slots=True)
class Rates:
    """How much is taken in a minute, of a burst or of a steady stream. None is no limit.

    NIP-11 has no place for it, so it stands under a key of ours, `rates_per_minute`.
    """

    messages_per_connection: int | None = None
    events_per_key: int | None = None
    requests_per_key: int | None = None
    connections_per_address: int | None = None


def document(
    *,
    name: str,
    description: str,
    version: str,
    software: str,
    limits: Limits,
    rates: Rates | None = None,
    supported_nips: Iterable[int] = SUPPORTED_NIPS,
    pubkey: str | None = None,
    self_key: str | None = None,
    contact: str | None = None,
) -> bytes:
    """The document as JSON.

    `pubkey` is the administrator's key, `self_key` the one that the relay signs with (`self`, left out if None). The
    NIPs are listed in order, each once. Without `rates` nothing is said of them.
    """
    fields: dict[str, object] = {"name": name, "description": description, "pubkey": pubkey}
    if self_key is not None:
        fields["self"] = self_key
    fields |= {
        "contact": contact,
        "supported_nips": sorted(set(supported_nips)),
        "software": software,
        "version": version,
        "limitation": asdict(limits),
    }
    if rates is not None:
        fields["rates_per_minute"] = asdict(rates)
    return orjson.dumps(fields)
