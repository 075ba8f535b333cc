"""The subscription index against a list of all subscriptions that is searched from end to end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.fanout import index as index_module
from relay.fanout.index import KEYS_MAX, Subscription, SubscriptionIndex
from relay.nostr.event import Event
from relay.nostr.filter import Filter, matches_any
from tests.fanout.indexing import AUTHORS, X, Y, assert_empty, end_about, examined

IDS = [f"{number:064x}" for number in range(3)]
VALUES = ["a", "b", X, Y]
filters = st.builds(
    Filter,
    ids=st.none() | st.frozensets(st.sampled_from(IDS), max_size=2),
    kinds=st.none() | st.frozensets(st.integers(0, 3), max_size=3),
    authors=st.none() | st.frozensets(st.sampled_from(AUTHORS), max_size=2),
    since=st.none() | st.integers(0, 4),
    tags=st.dictionaries(st.sampled_from("hpeE"), st.frozensets(st.sampled_from(VALUES), max_size=3), max_size=2),
)
connections = st.integers(0, 2)
sub_ids = st.sampled_from(["a", "b", "c"])
scopes = st.none() | st.frozensets(st.sampled_from([X, Y]), min_size=1)
events = st.builds(
    Event,
    st.sampled_from(IDS),
    st.sampled_from(AUTHORS),
    st.integers(0, 4),
    st.integers(0, 3),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["h", "p", "e", "E", "name"]), st.sampled_from(VALUES)).map(list),
            st.sampled_from(["h", "p", ""]).map(lambda name: [name]),
        ),
        max_size=4,
    ),
    st.just(""),
    st.just("0" * 128),
)


class IndexMachine(RuleBasedStateMachine):
    """Every operation is done on the index and on a list that is searched from end to end. With few keys allowed, the
    fields give way to each other; with many, each filter gets the best."""

    keys_max = KEYS_MAX

    @initialize()
    def start(self):
        index_module.KEYS_MAX = self.keys_max
        self.index = SubscriptionIndex()
        self.model: list[Subscription] = []

    def _take(self, drop) -> list[Subscription]:
        dropped = [sub for sub in self.model if drop(sub)]
        self.model = [sub for sub in self.model if not drop(sub)]
        return dropped

    @rule(connection=connections, sub_id=sub_ids, wanted=st.lists(filters, max_size=3), scope=scopes)
    def add(self, connection, sub_id, wanted, scope):
        sub = Subscription(connection, sub_id, tuple(wanted), scope, b"")
        replaced = self._take(lambda other: (other.connection, other.sub_id) == (connection, sub_id))
        assert self.index.add(sub) is (replaced[0] if replaced else None)
        self.model.append(sub)

    @rule(connection=connections, sub_id=sub_ids)
    def remove(self, connection, sub_id):
        dropped = self._take(lambda sub: (sub.connection, sub.sub_id) == (connection, sub_id))
        assert self.index.remove(connection, sub_id) is (dropped[0] if dropped else None)

    @rule(connection=connections)
    def remove_connection(self, connection):
        dropped = self._take(lambda sub: sub.connection == connection)
        assert self.index.remove_connection(connection) == len(dropped)

    @rule(connection=connections, channel=st.sampled_from([X, Y]))
    def evict(self, connection, channel):
        dropped = self._take(
            lambda sub: sub.connection == connection and sub.channels is not None and channel in sub.channels
        )
        assert end_about(self.index, connection, channel) == [sub.sub_id for sub in dropped]

    @rule(sent=events, channel=st.none() | st.sampled_from([X, Y]))
    def match(self, sent, channel):
        expected = [
            sub
            for sub in self.model
            if (sub.channels is None if channel is None else sub.channels is not None and channel in sub.channels)
            and matches_any(sub.filters, sent, channel)
        ]
        about = [sub for sub in self.model if sub.channels is not None and channel in sub.channels]
        family = about if channel is not None else [sub for sub in self.model if sub.channels is None]
        assert examined(self.index, sent, channel) <= len(family)
        matched = self.index.match(sent, channel)
        assert len(matched) == len(set(matched))
        assert set(matched) == set(expected)

    @invariant()
    def agree(self):
        assert self.index.count == len(self.model)
        for channel in (X, Y):
            about = [sub for sub in self.model if sub.channels is not None and channel in sub.channels]
            assert self.index.subscribers(channel) == about
            assert self.index.has_channel(channel) == bool(about)
        if not self.model:
            assert_empty(self.index)

    def teardown(self):
        for connection in range(3):
            self.index.remove_connection(connection)
        assert_empty(self.index)
        index_module.KEYS_MAX = KEYS_MAX


class FewKeysMachine(IndexMachine):
    keys_max = 3


IndexMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
FewKeysMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestIndexAgainstAList = IndexMachine.TestCase
TestIndexWithFewKeysAgainstAList = FewKeysMachine.TestCase
