-- Deletions by their author and time. Whether one takes back a version that comes now is asked at every profile and
-- article; found by the tag that names the address, everybody who names it as well is in the way (100 000 of those among
-- 470 000 rows: 80 ms, with this index under 1).
CREATE INDEX events_deletions ON events (pubkey, created_at) WHERE kind = 5;
