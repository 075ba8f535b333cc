"""What hypothesis draws for the audit's tests: any entry that the database can hold, awkward ones first."""

from __future__ import annotations

from hypothesis import strategies as st

from relay.audit.entry import INT32_MAX, INT64_MAX, KIND_AUTH, Entry

AWKWARD = ["", " ", "null", "0", "\x01", "\x7f", "é", "e\u0301", "\ufeff", "\U0010ffff", "'", '"', "\\", "\\x00",
           "{}", "NULL", "a\r\nb", "\u2028"]  # fmt: skip
METADATA = ["{}", '{"a":1e2}', '{"a":-0}', '{"a":1,"a":2}', '{"b":1,"a":1.0}', '{"a":"\\u0000"}', '{"a":"\\ud800"}',
            '{ "a" : [ ] }', '{"a":100000000000000000000000000000000000001}']  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Text without NUL and lone surrogates, which PostgreSQL refuses and `new_entry` before it."""
    return st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def uuids() -> st.SearchStrategy[str]:
    return st.uuids(allow_nil=True).map(str)


def entries() -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry,
        uuid=uuids(),
        time_us=st.sampled_from([0, 1, 999_999, INT64_MAX]) | st.integers(0, INT64_MAX),
        action=texts(),
        actor=st.none() | texts(),
        event_id=st.none() | texts(),
        kind=st.none() | st.integers(0, INT32_MAX).filter(lambda kind: kind != KIND_AUTH),
        channel_id=st.none() | uuids(),
        metadata=st.sampled_from(METADATA) | texts(),
    )


def seqs() -> st.SearchStrategy[int]:
    return st.integers(1, INT64_MAX)


def hashes() -> st.SearchStrategy[bytes]:
    return st.binary(min_size=32, max_size=32)
