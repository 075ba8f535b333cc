-- Checkpoints of the audit log: what the relay has signed about it, and what makes proofs cheap.

-- The inner nodes of the Merkle tree (RFC 6962) over the hashes of audit_log that are roots of complete subtrees of
-- 256, 65536, ... entries: a proof or a root then reads a few hundred rows, not the whole log. Nothing here is trusted:
-- whatever is made of these rows is compared with a signed checkpoint, and `relay audit verify` makes them anew.
CREATE TABLE audit_tree (
    -- 8, 16, 24 ...: the subtree has 2^level leaves. Its first leaf is seq index * 2^level + 1.
    level smallint NOT NULL,
    index bigint NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, index)
);

CREATE TABLE audit_checkpoints (
    -- The log's name; a log that was begun anew after an accepted loss has another one.
    origin text NOT NULL,
    -- How many entries it covers: seq 1 to size.
    size bigint NOT NULL CHECK (size >= 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    -- Microseconds since 1970, by the clock of the node that signed.
    time_us bigint NOT NULL,
    -- The signed note, byte for byte as it was signed: text, blank line, the relay's signature line.
    note text NOT NULL,
    -- The event by which it was published, once it was.
    event_id text,
    PRIMARY KEY (origin, size)
);

-- Signature lines of witnesses, each about one checkpoint.
CREATE TABLE audit_cosignatures (
    origin text NOT NULL,
    size bigint NOT NULL,
    witness text NOT NULL,
    line text NOT NULL,
    PRIMARY KEY (origin, size, witness),
    FOREIGN KEY (origin, size) REFERENCES audit_checkpoints
);

-- This relay as a witness of other logs: the newest checkpoint that it has cosigned for each.
CREATE TABLE audit_witnessed (
    origin text PRIMARY KEY,
    size bigint NOT NULL CHECK (size >= 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    note text NOT NULL,
    time_us bigint NOT NULL
);

-- Losses that an operator has accepted (`relay audit accept-loss`): the log goes on under a new name.
CREATE TABLE audit_losses (
    number int PRIMARY KEY CHECK (number > 0),
    time_us bigint NOT NULL,
    -- The last checkpoint of the old name, and the head that was there instead.
    origin text NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL,
    head_seq bigint NOT NULL,
    head_hash bytea NOT NULL,
    reason text NOT NULL
);
