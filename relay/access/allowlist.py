"""The allow-list: which keys may log in with their signature alone, where `SPROUT_PUBKEY_ALLOWLIST` says so.

Asked at every login and never remembered, so that a key that was taken off the list stays out. A token is its own
permission and is not measured by this list.
"""

from __future__ import annotations

import structlog

from relay.asyncpg_trio import Pool
from relay.store import users
from relay.store.failures import STORE_FAILURES

log = structlog.get_logger(__name__)


async def admits(pool: Pool, pubkey: str) -> bool:
    """Whether the key is on the list. A list that cannot be read admits nobody."""
    try:
        return await users.is_allowed(pool, pubkey)
    except STORE_FAILURES as error:
        log.error("the allow-list could not be read, login refused", error=repr(error))
        return False
