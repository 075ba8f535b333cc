"""NIP-11: the document in which the relay says what it is, what it speaks and where its limits are.

Settings and limits go in, JSON bytes come out. The numbers in `Limits` are those that the parts enforce, never others:
a client that keeps to the document must not be refused. Serving the bytes is the HTTP side's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

import orjson

from relay.nostr.messages import FILTERS_MAX, SUB_ID_BYTES_MAX

CONTENT_TYPE: Final = "application/nostr+json"

# Clients look for 16, 23 and 33 although NIP-01 has absorbed 16 and 33, and 23 asks nothing of a relay.
SUPPORTED_NIPS: Final = (1, 2, 9, 11, 16, 23, 25, 29, 33, 42)


@dataclass(frozen=True, slots=True)
class Limits:
    """`limitation` of NIP-11, field by field under its names there."""

    # Clients allow texts of 64 KiB, which must fit with envelope and escapes; the original's 65 536 did not hold them.
    max_message_length: int = 131_072
    max_subscriptions: int = 1024
    max_filters: int = FILTERS_MAX
    max_limit: int = 10_000
    max_subid_length: int = SUB_ID_BYTES_MAX
    min_pow_difficulty: int | None = None
    # Every EVENT and REQ needs NIP-42 first, and writing needs scopes and memberships beyond that.
    auth_required: bool = True
    payment_required: bool = False
    restricted_writes: bool = True


def document(
    *,
    name: str,
    description: str,
    version: str,
    software: str,
    limits: Limits,
    supported_nips: Iterable[int] = SUPPORTED_NIPS,
    pubkey: str | None = None,
    self_key: str | None = None,
    contact: str | None = None,
) -> bytes:
    """The document as JSON.

    `pubkey` is the administrator's key, `self_key` the one that the relay signs with (`self`, left out if None). The
    NIPs are listed in order, each once.
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
    return orjson.dumps(fields)
