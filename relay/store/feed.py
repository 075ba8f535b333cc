"""The feed of one key: what mentions it, what waits for it, and what went on in the channels that it may read.

In: a key, its token's channels, a time, a number of rows, the categories wanted. Out: rows by category, newest first,
in one statement. Access, deletion and expiry are conditions of that statement; global events belong to no feed.

Theory. Activity is the newest of many channels. The newest N events stand in the N channels whose own newest event is
newest, so one step down an index for each channel finds those, and N rows of each of them are enough: some thousands of
rows at most, however much is said and wherever. Walking back through everybody's messages would cost most for whoever
may read least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from relay.nostr import kinds
from relay.store.channels import Database
from relay.store.reach import READABLE_CHANNELS

MENTIONS: Final = "mentions"
NEEDS_ACTION: Final = "needs_action"
ACTIVITY: Final = "activity"
AGENT_ACTIVITY: Final = "agent_activity"
CATEGORIES: Final = (MENTIONS, NEEDS_ACTION, ACTIVITY, AGENT_ACTIVITY)

MENTION_KINDS: Final = (
    kinds.STREAM_MESSAGE, kinds.STREAM_MESSAGE_V2, kinds.FORUM_POST, kinds.FORUM_COMMENT,
)  # fmt: skip
ACTION_KINDS: Final = (kinds.WORKFLOW_APPROVAL_REQUESTED, kinds.STREAM_REMINDER)
ACTIVITY_KINDS: Final = (kinds.STREAM_MESSAGE, kinds.STREAM_MESSAGE_V2, kinds.FORUM_POST)
AGENT_KINDS: Final = (kinds.JOB_REQUEST, kinds.JOB_PROGRESS, kinds.JOB_RESULT)


@dataclass(frozen=True, slots=True)
class FeedRow:
    """One event of the feed, with the name and the type of its channel."""

    signed_json: bytes
    channel_id: str
    channel_name: str
    channel_type: str


def _kinds(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# What holds for every row, whatever brought it here. IS NOT TRUE: before the first ANALYZE the planner takes NULL for a
# rarity.
_SHOWN: Final = "e.deleted_at IS NULL AND (e.expires_at <= $6::bigint) IS NOT TRUE"

# `IN (...) IS TRUE` stays a look into a hash for each row. Without IS TRUE it may become a join, which would read every
# mention there is before it sorts them.
_MENTIONING: Final = """
SELECT '{category}' AS category, found.* FROM (
    SELECT e.id, e.created_at, e.signed_json, e.channel_id
    FROM event_mentions m
    CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.id = m.event_id AND {shown} OFFSET 0) e
    WHERE '{category}' = ANY ($5::text[]) AND m.pubkey = $1 AND m.created_at >= $3 AND m.kind IN ({kinds})
      AND (m.channel_id IN (SELECT id FROM readable)) IS TRUE
    ORDER BY m.created_at DESC, m.event_id LIMIT $4
) found"""

_OF_CHANNEL: Final = f"""
    FROM events e
    WHERE e.channel_id = r.id AND e.created_at >= $3 AND e.kind IN ({_kinds(ACTIVITY_KINDS)}) AND {_SHOWN}
    ORDER BY e.created_at DESC, e.id"""

_ACTIVE: Final = f"""
SELECT '{ACTIVITY}', found.* FROM (
    SELECT e.* FROM (
        SELECT r.id FROM readable r
        CROSS JOIN LATERAL (SELECT e.created_at, e.id AS event_id {_OF_CHANNEL} LIMIT 1) newest
        WHERE '{ACTIVITY}' = ANY ($5::text[])
        ORDER BY newest.created_at DESC, newest.event_id LIMIT $4
    ) r
    CROSS JOIN LATERAL (SELECT e.id, e.created_at, e.signed_json, e.channel_id {_OF_CHANNEL} LIMIT $4) e
    ORDER BY e.created_at DESC, e.id LIMIT $4
) found"""

# Kinds that are rare everywhere: by channel, each search for one would go through all that was ever said there. The
# number stands in the statement, for only then does the planner see that it is rare and take the index of kinds.
_OF_KIND: Final = f"""
    (SELECT e.id, e.created_at, e.signed_json, e.channel_id
     FROM events e
     WHERE '{AGENT_ACTIVITY}' = ANY ($5::text[]) AND e.kind = {{kind}} AND e.created_at >= $3 AND {_SHOWN}
       AND (e.channel_id IN (SELECT id FROM readable)) IS TRUE
     ORDER BY e.created_at DESC, e.id LIMIT $4)"""
_AGENTS: Final = f"""
SELECT '{AGENT_ACTIVITY}', found.* FROM (
    SELECT * FROM ({" UNION ALL ".join(_OF_KIND.format(kind=kind) for kind in AGENT_KINDS)}
    ) jobs
    ORDER BY created_at DESC, id LIMIT $4
) found"""

# A category that is not wanted costs nothing: its condition does not depend on any row, so it is asked first and once.
_FEED: Final = f"""
WITH readable AS MATERIALIZED ({READABLE_CHANNELS.format(key="$1", allowed="$2")}
), found AS (
{_MENTIONING.format(category=MENTIONS, kinds=_kinds(MENTION_KINDS), shown=_SHOWN)}
UNION ALL
{_MENTIONING.format(category=NEEDS_ACTION, kinds=_kinds(ACTION_KINDS), shown=_SHOWN)}
UNION ALL
{_ACTIVE}
UNION ALL
{_AGENTS}
)
SELECT f.category, f.signed_json, f.channel_id::text, c.name, c.channel_type::text
FROM found f JOIN channels c ON c.id = f.channel_id
ORDER BY f.created_at DESC, f.id"""


async def rows(
    db: Database,
    pubkey: str,
    *,
    since: int,
    limit: int,
    categories: Collection[str],
    now: int,
    allowed: Iterable[str] | None = None,
) -> dict[str, list[FeedRow]]:
    """The newest `limit` rows of each category (of `CATEGORIES`), newest first, of equals the lowest id first.

    `since` and `now` are seconds; what expires at or before `now` is left out. `allowed` are the channels that a token
    is restricted to, None = all.
    """
    restriction = None if allowed is None else list(allowed)
    found: dict[str, list[FeedRow]] = defaultdict(list)
    for row in await db.fetch(_FEED, bytes.fromhex(pubkey), restriction, since, limit, list(categories), now):
        found[row[0]].append(FeedRow(*row[1:]))
    return found
