-- Search in scripts that are written without blanks between words.
--
-- Every two characters of such a script that follow each other in the text, and the last of each run alone. Linear in
-- the length of the text: its two lists of characters are read side by side, none is looked up by its place. A pair
-- takes 1 µs and a tsvector holds 1 MB, so of a very long text only the beginning is taken.
-- Not for pg_trgm: it knows no pairs, drops letters that the locale of the C library does not know (with the locale C
-- that is every letter but ASCII), and would index every message: 46 MB instead of 21 for 200 000 messages of which a
-- tenth is Japanese, and 56 µs for each message in English.
CREATE FUNCTION run_grams(content text) RETURNS tsvector LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT array_to_tsvector(array_agg(pair.a || CASE WHEN pair.b <> ' ' THEN pair.b ELSE '' END))
FROM (SELECT regexp_replace(left(content, 16384), '[^\u0E00-\u109F\u1100-\u11FF\u1780-\u17FF\u1950-\u19FF\u1A20-\u1AAF\u2E80-\u2FDF\u3005-\u3007\u3040-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97F\uA9E0-\uA9FF\uAA60-\uAADF\uAC00-\uD7FF\uF900-\uFAFF\uFF66-\uFFDC\U0001AFF0-\U0001B16F\U00020000-\U0003FFFF]+', ' ', 'g') AS text) AS runs,
     unnest(string_to_array(runs.text, NULL), string_to_array(substr(runs.text, 2), NULL)) AS pair(a, b)
WHERE pair.a <> ' '
$$;

-- Two lengths are cheap to compare, and most messages of most teams end there (below 1 µs); a message of 30 characters
-- of such a script costs another 50 to 130 µs. The condition says nothing that the planner has figures for: it would
-- take "has such characters" and "has this pair" for independent, and both together for rarer than they are.
CREATE INDEX events_runs ON events USING gin (run_grams(content)) WITH (gin_pending_list_limit = 512)
    WHERE octet_length(content) <> char_length(content) AND substring(content, '[\u0E00-\u109F\u1100-\u11FF\u1780-\u17FF\u1950-\u19FF\u1A20-\u1AAF\u2E80-\u2FDF\u3005-\u3007\u3040-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97F\uA9E0-\uA9FF\uAA60-\uAADF\uAC00-\uD7FF\uF900-\uFAFF\uFF66-\uFFDC\U0001AFF0-\U0001B16F\U00020000-\U0003FFFF]') IS NOT NULL;
-- Of a partial index the planner knows nothing about the values. With this it knows which pairs are common, and walks
-- back in time for them instead of reading every message that has one.
CREATE STATISTICS events_runs_values ON (run_grams(content)) FROM events;
