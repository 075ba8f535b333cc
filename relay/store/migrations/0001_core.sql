-- Channels, members, users, tokens, events: what a team talks in and who may.

CREATE TYPE channel_type AS ENUM ('stream', 'forum', 'dm', 'workflow');
CREATE TYPE channel_visibility AS ENUM ('open', 'private');
CREATE TYPE member_role AS ENUM ('owner', 'admin', 'member', 'guest', 'bot');
CREATE TYPE channel_add_policy AS ENUM ('anyone', 'owner_only', 'nobody');

-- One row for ever: a node whose key differs from this one would orphan every relay-signed event.
CREATE TABLE relay_identity (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    pubkey     bytea NOT NULL CHECK (length(pubkey) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    pubkey             bytea PRIMARY KEY CHECK (length(pubkey) = 32),
    nip05_handle       varchar(255) UNIQUE,
    display_name       text,
    avatar_url         text,
    about              text,
    agent_type         text,
    capabilities       jsonb,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    agent_owner_pubkey bytea REFERENCES users (pubkey) ON DELETE SET NULL,
    channel_add_policy channel_add_policy NOT NULL DEFAULT 'anyone'
);

CREATE TABLE channels (
    -- The nil UUID routes global events between nodes and may never name a channel.
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid()
                     CONSTRAINT chk_channels_id_not_nil CHECK (id <> '00000000-0000-0000-0000-000000000000'),
    name             varchar(255) NOT NULL,
    channel_type     channel_type NOT NULL DEFAULT 'stream',
    visibility       channel_visibility NOT NULL DEFAULT 'open',
    description      text,
    created_by       bytea NOT NULL CHECK (length(created_by) = 32),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    archived_at      timestamptz,
    deleted_at       timestamptz,
    topic_required   boolean NOT NULL DEFAULT false,
    max_members      int,
    topic            text,
    topic_set_by     bytea,
    topic_set_at     timestamptz,
    purpose          text,
    purpose_set_by   bytea,
    purpose_set_at   timestamptz,
    participant_hash bytea,
    ttl_seconds      int CHECK (ttl_seconds > 0),
    ttl_deadline     timestamptz
);
-- The lists ask for all live open channels, and for live channels by name within their type.
CREATE INDEX channels_open ON channels (id) WHERE visibility = 'open' AND deleted_at IS NULL;
-- A deleted DM must not stop its participants from opening a new one.
CREATE UNIQUE INDEX channels_dm ON channels (participant_hash) WHERE deleted_at IS NULL;
CREATE INDEX channels_ttl ON channels (ttl_deadline)
    WHERE ttl_deadline IS NOT NULL AND archived_at IS NULL AND deleted_at IS NULL;

CREATE TABLE channel_members (
    channel_id uuid NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
    pubkey     bytea NOT NULL CHECK (length(pubkey) = 32),
    role       member_role NOT NULL DEFAULT 'member',
    -- clock_timestamp: members that one transaction adds still have an order.
    joined_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    invited_by bytea,
    removed_at timestamptz,
    removed_by bytea,
    hidden_at  timestamptz,
    PRIMARY KEY (channel_id, pubkey)
);
-- "My channels" is asked at every REQ; without this it reads the whole table.
CREATE INDEX channel_members_active ON channel_members (pubkey, channel_id) WHERE removed_at IS NULL;

CREATE TABLE api_tokens (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    token_hash           bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    owner_pubkey         bytea NOT NULL REFERENCES users (pubkey),
    name                 text NOT NULL,
    scopes               text[] NOT NULL,
    channel_ids          uuid[],             -- NULL = every channel, empty = none
    created_at           timestamptz NOT NULL DEFAULT now(),
    expires_at           timestamptz,
    last_used_at         timestamptz,
    revoked_at           timestamptz,
    revoked_by           bytea,
    created_by_self_mint boolean NOT NULL DEFAULT false
);
CREATE INDEX api_tokens_owner ON api_tokens (owner_pubkey, created_at DESC);

CREATE TABLE pubkey_allowlist (
    pubkey   bytea PRIMARY KEY CHECK (length(pubkey) = 32),
    added_by bytea,
    added_at timestamptz NOT NULL DEFAULT now(),
    note     text
);

CREATE TABLE events (
    id          bytea PRIMARY KEY CHECK (length(id) = 32),
    pubkey      bytea NOT NULL CHECK (length(pubkey) = 32),
    -- Seconds, as signed: NIP-01 allows values that no timestamptz holds.
    created_at  bigint NOT NULL,
    kind        int NOT NULL,
    tags        jsonb NOT NULL,
    content     text NOT NULL,
    sig         bytea NOT NULL CHECK (length(sig) = 64),
    received_at timestamptz NOT NULL DEFAULT now(),
    -- No foreign keys here and below: channels and events are marked, never removed, and the insert itself checks
    -- the channel; a trigger for each row would do it once more at every message.
    channel_id  uuid,
    deleted_at  timestamptz,
    d_tag       text,                        -- kinds 30000 to 39999 only; a missing tag is the empty string
    -- 'x:value' of every single-letter tag: what a filter's #x asks for. A value too long for an index entry stands as
    -- 'x#' and its SHA-256. The h tag that names channel_id is left out.
    tag_values  text[] NOT NULL DEFAULT '{}',
    -- The seven signed fields in our own serialisation; replay and fan-out copy it into frames as it is.
    signed_json bytea NOT NULL,
    search      tsvector GENERATED ALWAYS AS (
        CASE WHEN kind IN (1059, 40099, 44100, 44101, 48101, 48102, 48103) OR content = '' THEN NULL
             ELSE to_tsvector('simple', content) END) STORED
);
-- The id at the end makes the order of a page total, so that no cursor skips what shares a second.
CREATE INDEX events_channel ON events (channel_id, created_at DESC, id) WHERE deleted_at IS NULL;
CREATE INDEX events_kind ON events (kind, created_at DESC, id) WHERE deleted_at IS NULL;
CREATE INDEX events_author ON events (pubkey, kind, created_at DESC) WHERE deleted_at IS NULL;
CREATE INDEX events_replaceable ON events (kind, pubkey, channel_id) WHERE deleted_at IS NULL
    AND (kind IN (0, 3) OR kind BETWEEN 10000 AND 19999 OR kind BETWEEN 39000 AND 39002);
CREATE INDEX events_addressable ON events (kind, pubkey, d_tag) WHERE d_tag IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX events_tags ON events USING gin (tag_values);
CREATE INDEX events_search ON events USING gin (search);
-- Postings of a few thousand new rows would otherwise be scanned by every read until a vacuum merges them.
ALTER INDEX events_tags SET (gin_pending_list_limit = 512);
ALTER INDEX events_search SET (gin_pending_list_limit = 512);

CREATE TABLE event_mentions (
    pubkey     bytea NOT NULL,
    event_id   bytea NOT NULL,
    created_at bigint NOT NULL,
    kind       int NOT NULL,
    channel_id uuid,
    PRIMARY KEY (pubkey, event_id)
);
CREATE INDEX event_mentions_newest ON event_mentions (pubkey, created_at DESC, event_id);

CREATE TABLE reactions (
    event_id          bytea NOT NULL,
    pubkey            bytea NOT NULL,
    emoji             varchar(64) NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    removed_at        timestamptz,
    reaction_event_id bytea UNIQUE,
    PRIMARY KEY (event_id, pubkey, emoji)
);
