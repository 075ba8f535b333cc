"""The agents that a key can meet: every bot that is in a channel which the key may read. One statement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import orjson

from relay.store.channels import Database
from relay.store.reach import READABLE_CHANNELS

ROWS_MAX: Final = 1000  # the original's


@dataclass(frozen=True, slots=True)
class ListedAgent:
    """`channel_names` and `channel_ids` go side by side, by name; there is at least one."""

    pubkey: str
    display_name: str | None
    agent_type: str | None
    capabilities: list[str]
    channel_names: list[str]
    channel_ids: list[str]


_AGENTS: Final = f"""
WITH readable AS MATERIALIZED ({READABLE_CHANNELS.format(key="$1", allowed="$2")}
), bots AS (
    SELECT m.pubkey, array_agg(c.name::text ORDER BY c.name, c.id) AS names,
           array_agg(c.id::text ORDER BY c.name, c.id) AS ids
    FROM channel_members m JOIN readable r ON r.id = m.channel_id JOIN channels c ON c.id = m.channel_id
    WHERE m.role = 'bot' AND m.removed_at IS NULL
    GROUP BY m.pubkey
)
SELECT encode(b.pubkey, 'hex') AS pubkey, u.display_name, u.agent_type, u.capabilities::text AS capabilities, b.names,
       b.ids
FROM bots b LEFT JOIN users u ON u.pubkey = b.pubkey
ORDER BY u.display_name, b.pubkey LIMIT $3"""


async def agents(db: Database, pubkey: str, *, allowed: Iterable[str] | None = None) -> list[ListedAgent]:
    """By name, those without one last. `allowed` are the channels that a token is restricted to, None = all."""
    rows = await db.fetch(_AGENTS, bytes.fromhex(pubkey), None if allowed is None else list(allowed), ROWS_MAX)
    return [
        ListedAgent(row[0], row[1], row[2], _strings(row["capabilities"]), row["names"], row["ids"]) for row in rows
    ]


def _strings(json: str | None) -> list[str]:
    """The strings of a JSON array; what else stands in it, or for it, is no capability."""
    value = None if json is None else orjson.loads(json)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
