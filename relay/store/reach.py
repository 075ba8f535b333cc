"""What a key may read, as pieces of SQL: the access check as a part of the query that it guards.

Fresh with every statement, so that nobody reads on in a channel that he lost a moment ago, on whichever node; and no
round trip of its own. The pieces are formatted into statements with the placeholders of their arguments.
"""

from __future__ import annotations

from typing import Final

# One row (the channel's) where the key may read the channel, else none. `{channel}` uuid, `{key}` bytea.
READABLE_CHANNEL: Final = """
SELECT c.* FROM channels c
WHERE c.id = {channel} AND c.deleted_at IS NULL
  AND (c.visibility = 'open' OR EXISTS (
      SELECT 1 FROM channel_members m WHERE m.channel_id = c.id AND m.pubkey = {key} AND m.removed_at IS NULL))"""

# The ids of all channels that the key may read; `{allowed}` is the list of a restricted token, text[] or NULL. Two
# index scans: "open or mine" in one condition would read every channel there is.
READABLE_CHANNELS: Final = """
SELECT o.id FROM channels o
WHERE o.visibility = 'open' AND o.deleted_at IS NULL
  AND ({allowed}::text[] IS NULL OR o.id = ANY ({allowed}::text[]::uuid[]))
UNION
SELECT c.id FROM channel_members m JOIN channels c ON c.id = m.channel_id AND c.deleted_at IS NULL
WHERE m.pubkey = {key} AND m.removed_at IS NULL
  AND ({allowed}::text[] IS NULL OR m.channel_id = ANY ({allowed}::text[]::uuid[]))"""
