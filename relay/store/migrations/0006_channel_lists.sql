-- What the lists of channels and agents show of each, kept where it can be read without reading everything behind it.

-- Counting anew means one index entry for every member of every channel in the list (200 channels of 50: 2 ms of 4).
ALTER TABLE channels ADD COLUMN member_count int NOT NULL DEFAULT 0 CHECK (member_count >= 0);
UPDATE channels SET member_count = found.members
FROM (SELECT channel_id, count(*) AS members FROM channel_members WHERE removed_at IS NULL GROUP BY channel_id) AS found
WHERE channels.id = found.channel_id;

-- Whoever changes memberships, and however many at once. By how much, not to what: two transactions that each see only
-- their own member still count both. The row is the one that ingest locks before it touches members.
CREATE FUNCTION count_members() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE channels SET member_count = member_count + d.n
        FROM (SELECT channel_id, count(*) AS n FROM new_rows WHERE removed_at IS NULL GROUP BY channel_id) AS d
        WHERE id = d.channel_id;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE channels SET member_count = member_count - d.n
        FROM (SELECT channel_id, count(*) AS n FROM old_rows WHERE removed_at IS NULL GROUP BY channel_id) AS d
        WHERE id = d.channel_id;
    ELSE
        UPDATE channels SET member_count = member_count + d.n
        FROM (SELECT channel_id, sum(step) AS n
              FROM (SELECT channel_id, 1 AS step FROM new_rows WHERE removed_at IS NULL
                    UNION ALL SELECT channel_id, -1 FROM old_rows WHERE removed_at IS NULL) AS steps
              GROUP BY channel_id HAVING sum(step) <> 0) AS d
        WHERE id = d.channel_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER members_added AFTER INSERT ON channel_members REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_members();
CREATE TRIGGER members_changed AFTER UPDATE ON channel_members REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_members();
CREATE TRIGGER members_gone AFTER DELETE ON channel_members REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_members();

-- Without it the list of agents reads every membership there is.
CREATE INDEX channel_members_bots ON channel_members (channel_id, pubkey) WHERE role = 'bot' AND removed_at IS NULL;
-- A channel without a canvas would be read to its first message, or every canvas of every other channel.
CREATE INDEX events_canvas ON events (channel_id, created_at DESC, id) WHERE kind = 40100 AND deleted_at IS NULL;
