-- The audit log and its outbox.
--
-- An entry is first written into audit_outbox, in the transaction of the action it tells of: both are there or neither
-- is. The audit worker then moves it, hash by hash, into audit_log: insert here and delete there are one transaction
-- again, so at every moment an entry is in exactly one of the two tables.

CREATE TABLE audit_outbox (
    -- The order in which entries are chained. Gaps are normal (a rolled-back transaction leaves one), which is why
    -- audit_log numbers its own rows.
    id bigserial PRIMARY KEY,
    -- Names the entry on its whole way; a producer that tries again with the same uuid cannot write it twice.
    uuid uuid NOT NULL UNIQUE,
    -- Microseconds as an integer and metadata as text, not timestamptz and jsonb: what is hashed must come back as it
    -- went in, and both of those types normalise.
    time_us bigint NOT NULL CHECK (time_us >= 0),
    action text NOT NULL,
    actor text,
    event_id text,
    -- An AUTH event is a credential. Producers refuse it with a better message; this is the second lock.
    kind int CHECK (kind <> 22242),
    channel_id uuid,
    metadata text NOT NULL
)
-- A queue: rows live for milliseconds and the planner's idea of its size is never right. Vacuum early and without
-- pausing, or reading its low end walks over everything that was ever deleted there.
WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE audit_log (
    -- 1, 2, 3 ... without a gap, assigned by the one writer under its lock: a sequence would skip numbers on rollback.
    seq bigint PRIMARY KEY CHECK (seq > 0),
    uuid uuid NOT NULL UNIQUE,
    time_us bigint NOT NULL CHECK (time_us >= 0),
    action text NOT NULL,
    actor text,
    event_id text,
    kind int CHECK (kind <> 22242),
    channel_id uuid,
    metadata text NOT NULL,
    -- How `hash` was made: 1 = the original's rule (imported rows only), 2 = ours.
    version smallint NOT NULL,
    -- UNIQUE is what makes a fork impossible: two rows can never follow the same one, whatever the writers believe.
    prev_hash bytea NOT NULL UNIQUE CHECK (octet_length(prev_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    -- The time text that version 1 hashed; nothing else could reproduce its digits.
    v1_time text CHECK ((version = 1) = (v1_time IS NOT NULL))
);

-- No further index: nothing in the relay reads by actor or event, and each would cost every entry.

-- Append only. This stops mistakes, not an intruder with the owner's rights: against that one stands the chain itself.
CREATE FUNCTION audit_log_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;

-- Per statement: an INSERT never meets it, so it costs the writer nothing.
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse_change();
