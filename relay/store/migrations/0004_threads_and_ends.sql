-- Threads (NIP-10), events that expire (NIP-40), tokens that end while a connection is open.

-- A row for every reply, and for what has been replied to; a message without answers has none.
CREATE TABLE thread_metadata (
    event_id         bytea PRIMARY KEY CHECK (length(event_id) = 32),
    channel_id       uuid NOT NULL,
    created_at       bigint NOT NULL,        -- of the event, in seconds: what a page of replies is ordered by
    parent_event_id  bytea,
    root_event_id    bytea,
    depth            int NOT NULL DEFAULT 0 CHECK (depth BETWEEN 0 AND 100),
    reply_count      int NOT NULL DEFAULT 0 CHECK (reply_count >= 0),           -- direct answers that are not deleted
    descendant_count int NOT NULL DEFAULT 0 CHECK (descendant_count >= 0),      -- of all levels, kept at the root
    last_reply_at    timestamptz,
    broadcast        boolean NOT NULL DEFAULT false
);
CREATE INDEX thread_metadata_root ON thread_metadata (root_event_id, created_at, event_id)
    WHERE root_event_id IS NOT NULL;
CREATE INDEX thread_metadata_parent ON thread_metadata (parent_event_id, created_at, event_id)
    WHERE parent_event_id IS NOT NULL;

-- Seconds; the first `expiration` tag that is a number. Nothing is shown from that second on.
ALTER TABLE events ADD COLUMN expires_at bigint;
UPDATE events SET expires_at = found.at
FROM (SELECT e.id, (SELECT (t ->> 1)::bigint FROM jsonb_array_elements(e.tags) t
                    WHERE t ->> 0 = 'expiration' AND t ->> 1 ~ '^[0-9]{1,18}$' LIMIT 1) AS at
      FROM events e WHERE e.tags @> '[["expiration"]]') AS found
WHERE events.id = found.id AND found.at IS NOT NULL;
CREATE INDEX events_expiring ON events (expires_at) WHERE expires_at IS NOT NULL AND deleted_at IS NULL;

-- Whoever ends a token, and from wherever: the relays that have connections open with it hear of it.
CREATE FUNCTION notify_token_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('relay_token_ended', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER token_ended AFTER UPDATE OF revoked_at, expires_at ON api_tokens FOR EACH ROW
    WHEN (NEW.revoked_at IS DISTINCT FROM OLD.revoked_at OR NEW.expires_at IS DISTINCT FROM OLD.expires_at)
    EXECUTE FUNCTION notify_token_ended();

-- What an author has taken back: whether a version that comes again was deleted before.
CREATE INDEX events_gone ON events (pubkey, kind) WHERE deleted_at IS NOT NULL AND channel_id IS NULL;
