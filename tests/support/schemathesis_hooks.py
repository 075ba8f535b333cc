"""What schemathesis cannot guess: ids of things that exist, and events whose signature is good.

Loaded by its command line (`SCHEMATHESIS_HOOKS`). Half of what is generated stays as it is; in the other half an id of
`RELAY_KNOWN` takes the place of a made-up one, and an event is signed by `ALICE`.
"""

from __future__ import annotations

import os
from typing import Any

import orjson
import schemathesis
from hypothesis import strategies as st

from tests.support.core import ALICE, BOB
from tests.support.relay import fields

KNOWN: dict[str, list[str]] = orjson.loads(os.environ["RELAY_KNOWN"])
"""Parameter → values."""
EVENT_ROUTES = {"POST /api/events", "POST /events"}
KINDS = (9, 1, 0, 3, 5, 7, 9000, 9001, 9002, 9005, 9007, 9021, 9022, 30023, 40002, 40003, 40100, 45001, 45003)
NAMES = ("h", "e", "p", "d", "k", "name", "topic", "role", "expiration", "emoji", "broadcast", "archived", "ttl")


@schemathesis.hook
def flatmap_path_parameters(_ctx: Any, path_parameters: Any) -> st.SearchStrategy[Any]:
    return _known_in(path_parameters)


@schemathesis.hook
def flatmap_query(_ctx: Any, query: Any) -> st.SearchStrategy[Any]:
    return _known_in(query)


@schemathesis.hook
def flatmap_body(ctx: Any, body: Any) -> st.SearchStrategy[Any]:
    if not isinstance(body, dict):
        return st.just(body)
    if ctx.operation.label in EVENT_ROUTES:
        return st.one_of(st.just(body), _events())
    if "pubkeys" in body:
        people = st.lists(st.sampled_from(KNOWN["pubkey"]), min_size=1, max_size=3)
        return st.one_of(st.just(body), people.map(lambda keys: {**body, "pubkeys": keys}))
    return st.just(body)


def _known_in(values: Any) -> st.SearchStrategy[Any]:
    if not isinstance(values, dict) or not (known := [name for name in values if name in KNOWN]):
        return st.just(values)
    chosen = st.fixed_dictionaries({name: st.sampled_from(KNOWN[name]) for name in known})
    return st.one_of(st.just(values), chosen.map(lambda real: values | real))


def _events() -> st.SearchStrategy[dict[str, Any]]:
    text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
    values = st.one_of(text, st.sampled_from([*KNOWN["channel_id"], *KNOWN["event_id"], ALICE.pubkey, BOB.pubkey]))
    tags = st.one_of(st.just([]), st.lists(st.tuples(st.sampled_from(NAMES), values).map(list), max_size=4))
    channel = st.sampled_from([[["h", channel_id]] for channel_id in KNOWN["channel_id"]])
    return st.builds(
        lambda kind, content, first, more: fields(ALICE.sign(kind, content, [*first, *more])),
        st.sampled_from(KINDS), text, st.one_of(channel, st.just([])), tags,
    )  # fmt: skip
