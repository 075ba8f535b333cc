"""The subscription index: what each event reaches, that nothing leaks between channels, that nothing is left over."""

from __future__ import annotations

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.fanout.index import Subscription, SubscriptionIndex
from relay.nostr.event import Event
from relay.nostr.filter import Filter, matches_any

X = "11111111-1111-1111-1111-111111111111"
Y = "22222222-2222-2222-2222-222222222222"
AUTHORS = ["a" * 64, "b" * 64]
_ids = count()


def event(kind: int, *, channel: str | None = None, author: str = AUTHORS[0], created_at: int = 1000) -> Event:
    tags = [["h", channel]] if channel is not None else []
    return Event(f"{next(_ids):064x}", author, created_at, kind, tags, "", "0" * 128)


def kinds(*wanted: int, channel: str | None = None) -> Filter:
    return Filter(kinds=frozenset(wanted), tags={"h": frozenset([channel])} if channel else {})


def subscribe(index, connection, sub_id, *filters, channels=None) -> Subscription:
    scope = frozenset(channels) if channels is not None else None
    sub = Subscription(connection, sub_id, filters, scope, b'["EVENT","%s",' % sub_id.encode())
    index.add(sub)
    return sub


def reached(index, event, channel=None) -> list[tuple[object, str]]:
    return [(sub.connection, sub.sub_id) for sub in index.match(event, channel)]


def assert_empty(index: SubscriptionIndex) -> None:
    assert index.subs == {}
    assert index.channel_kind_index == {}
    assert index.channel_wildcard_index == {}
    assert index.global_kind_index == {}
    assert index.global_wildcard_index == {}
    assert index.count == 0
    assert not index.has_channel(X)
    statistics = index.statistics()
    assert (statistics.subscriptions, statistics.connections) == (0, 0)
    assert (statistics.channels, statistics.index_keys) == (0, 0)


# ---- the original's tests, by their names


def test_global_kind_index_fan_out():
    index = SubscriptionIndex()
    subscribe(index, 1, "notes", kinds(1))
    subscribe(index, 2, "profiles", kinds(0))
    assert reached(index, event(1)) == [(1, "notes")]
    assert reached(index, event(0)) == [(2, "profiles")]
    assert reached(index, event(7)) == []


def test_global_wildcard_index_fan_out():
    index = SubscriptionIndex()
    subscribe(index, 1, "all", Filter())
    assert [reached(index, event(kind)) for kind in (0, 1, 30023)] == [[(1, "all")]] * 3
    assert reached(index, event(1, channel=X), X) == []


def test_global_index_removal_cleanup():
    index = SubscriptionIndex()
    subscribe(index, 1, "kind", kinds(1))
    subscribe(index, 1, "all", Filter())
    assert list(index.global_kind_index) == [1]
    assert len(index.global_wildcard_index) == 1
    index.remove(1, "kind")
    index.remove(1, "all")
    assert_empty(index)


def test_global_and_channel_subs_are_isolated():
    index = SubscriptionIndex()
    subscribe(index, 1, "global", kinds(9))
    subscribe(index, 2, "channel", kinds(9), channels=[X])
    assert reached(index, event(9)) == [(1, "global")]
    assert reached(index, event(9, channel=X), X) == [(2, "channel")]


def test_register_and_fan_out():
    index = SubscriptionIndex()
    subscribe(index, "connection", "s", kinds(9, channel=X), channels=[X])
    assert reached(index, event(9, channel=X), X) == [("connection", "s")]


def test_remove():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", kinds(9), channels=[X])
    assert index.remove(1, "s") is sub
    assert index.remove(1, "s") is None
    assert index.remove(2, "s") is None
    assert reached(index, event(9, channel=X), X) == []


def test_remove_connection():
    index = SubscriptionIndex()
    subscribe(index, 1, "one", kinds(9), channels=[X])
    subscribe(index, 1, "two", Filter())
    assert index.remove_connection(1) == 2
    assert index.remove_connection(1) == 0
    assert_empty(index)


def test_channel_kind_index():
    index = SubscriptionIndex()
    for connection in (1, 2, 3):
        subscribe(index, connection, "s", kinds(9), channels=[X])
    assert reached(index, event(9, channel=X), X) == [(1, "s"), (2, "s"), (3, "s")]
    assert reached(index, event(7, channel=X), X) == []


def test_replace_existing():
    index = SubscriptionIndex()
    old = subscribe(index, 1, "s", kinds(9), channels=[X])
    new = Subscription(1, "s", (kinds(7),), frozenset([X]), b"")
    assert index.add(new) is old
    assert reached(index, event(9, channel=X), X) == []
    assert index.match(event(7, channel=X), X) == [new]
    assert index.count == 1


def test_no_channel_slow_path():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", kinds(1))
    assert reached(index, event(1)) == [(1, "s")]


def test_get_filters():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", kinds(1), Filter())
    assert index.get_filters(1, "s") == (kinds(1), Filter())
    assert index.get(1, "s") is sub
    assert index.get_filters(1, "other") is None
    assert index.get_filters(2, "s") is None


def test_remove_from_index_targeted():
    index = SubscriptionIndex()
    subscribe(index, 1, "x", kinds(9), channels=[X])
    kept = subscribe(index, 1, "y", kinds(9), channels=[Y])
    index.remove(1, "x")
    assert index.channel_kind_index == {(Y, 9): {kept: None}}


def test_kindless_channel_subscription_receives_all_kinds():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    assert [reached(index, event(kind, channel=X), X) for kind in (0, 9, 40002)] == [[(1, "s")]] * 3
    assert reached(index, event(9, channel=Y), Y) == []


def test_kindless_remove_cleans_wildcard_index():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    assert list(index.channel_wildcard_index) == [X]
    index.remove(1, "s")
    assert_empty(index)


def test_kindless_and_kinded_coexist():
    index = SubscriptionIndex()
    subscribe(index, 1, "all", Filter(), channels=[X])
    subscribe(index, 2, "notes", kinds(1), channels=[X])
    assert reached(index, event(1, channel=X), X) == [(2, "notes"), (1, "all")]
    assert reached(index, event(0, channel=X), X) == [(1, "all")]


def test_kindless_replace():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    new = subscribe(index, 1, "s", kinds(9), channels=[X])
    assert index.channel_wildcard_index == {}
    assert index.channel_kind_index == {(X, 9): {new: None}}


def test_empty_kinds_matches_nothing():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", kinds(), channels=[X])
    subscribe(index, 1, "g", kinds())
    assert index.count == 2
    assert index.statistics().index_keys == 0
    assert index.global_wildcard_index == {}
    assert reached(index, event(9, channel=X), X) == []
    assert reached(index, event(9)) == []
    assert index.subscribers(X) == [sub]


def test_global_sub_does_not_receive_channel_events():
    index = SubscriptionIndex()
    subscribe(index, 1, "kind", kinds(9))
    subscribe(index, 1, "all", Filter())
    subscribe(index, 1, "named", kinds(9, channel=X))
    assert reached(index, event(9, channel=X), X) == []


def test_empty_kinds_remove_noop():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", kinds(), channels=[X])
    subscribe(index, 1, "g", kinds())
    kept = subscribe(index, 2, "s", kinds(9), channels=[X])
    index.remove(1, "s")
    index.remove(1, "g")
    assert index.match(event(9, channel=X), X) == [kept]
    index.remove(2, "s")
    assert_empty(index)


def test_remove_channel_subscriptions_only_evicts_target_channel():
    index = SubscriptionIndex()
    subscribe(index, 1, "x1", kinds(9), channels=[X])
    subscribe(index, 1, "x2", Filter(), channels=[X])
    subscribe(index, 1, "y", kinds(9), channels=[Y])
    subscribe(index, 1, "global", Filter())
    subscribe(index, 2, "x1", kinds(9), channels=[X])
    assert index.remove_channel_subscriptions(1, X) == ["x1", "x2"]
    assert index.remove_channel_subscriptions(1, X) == []
    assert index.remove_channel_subscriptions(3, X) == []
    assert reached(index, event(9, channel=X), X) == [(2, "x1")]
    assert reached(index, event(9, channel=Y), Y) == [(1, "y")]
    assert reached(index, event(9)) == [(1, "global")]


# ---- beyond the original


def test_a_subscription_to_two_channels_is_live_in_both_and_evicted_whole():
    index = SubscriptionIndex()
    subscribe(index, 1, "both", kinds(9, channel=X), kinds(9, channel=Y), channels=[X, Y])
    assert reached(index, event(9, channel=X), X) == [(1, "both")]
    assert reached(index, event(9, channel=Y), Y) == [(1, "both")]
    assert index.remove_channel_subscriptions(1, Y) == ["both"]
    assert_empty(index)


def test_the_union_of_kinds_does_not_widen_a_filter():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", kinds(9, channel=X), kinds(7, channel=Y), channels=[X, Y])
    assert reached(index, event(7, channel=X), X) == []
    assert reached(index, event(7, channel=Y), Y) == [(1, "s")]


def test_several_filters_that_match_give_one_hit():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", kinds(1), kinds(1, 2), Filter(authors=frozenset(AUTHORS), kinds=frozenset([1])))
    assert reached(index, event(1)) == [(1, "s")]


def test_a_reaction_without_h_tag_reaches_the_channel_it_was_filed_under():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", kinds(7, channel=X), channels=[X])
    assert reached(index, event(7), X) == [(1, "s")]
    assert reached(index, event(7), None) == []


def test_equal_subscriptions_are_told_apart_by_identity():
    one, other = (Subscription(1, "s", (Filter(),), None, b"") for _ in range(2))
    assert one != other
    index = SubscriptionIndex()
    index.add(one)
    assert index.add(other) is one
    assert index.get(1, "s") is other


def test_the_answer_is_a_copy_that_survives_changes():
    index = SubscriptionIndex()
    for connection in range(3):
        subscribe(index, connection, "s", Filter())
    for sub in index.match(event(1), None):
        index.remove_connection(sub.connection)
    assert_empty(index)


def test_the_number_of_examined_candidates_does_not_grow_with_other_global_subscriptions():
    index = SubscriptionIndex()
    subscribe(index, "me", "s", kinds(9), channels=[X])
    subscribe(index, "me", "g", kinds(1))
    for connection in range(2000):
        subscribe(index, connection, "kind", kinds(10_000 + connection % 50))
        subscribe(index, connection, "elsewhere", Filter(), channels=[Y])
    for wanted, channel in ((event(9, channel=X), X), (event(1), None)):
        before = index.statistics()
        assert len(index.match(wanted, channel)) == 1
        after = index.statistics()
        assert after.examined - before.examined == 1
        assert after.matched - before.matched == 1


# ---- against a list

filters = st.builds(
    Filter,
    kinds=st.none() | st.frozensets(st.integers(0, 3), max_size=3),
    authors=st.none() | st.frozensets(st.sampled_from(AUTHORS), max_size=2),
    since=st.none() | st.integers(0, 4),
    tags=st.dictionaries(st.just("h"), st.frozensets(st.sampled_from([X, Y]), min_size=1), max_size=1),
)
connections = st.integers(0, 2)
sub_ids = st.sampled_from(["a", "b", "c"])
scopes = st.none() | st.frozensets(st.sampled_from([X, Y]), min_size=1)


def test_too_many_kinds_stand_as_a_wildcard_and_still_match_exactly():
    index = SubscriptionIndex()
    many = frozenset(range(20_000))
    subscribe(index, 1, "global", Filter(kinds=many))
    subscribe(index, 1, "channels", Filter(kinds=frozenset(range(600))), channels=[X, Y])
    assert index.statistics().index_keys <= 2
    assert reached(index, event(19_999)) == [(1, "global")]
    assert reached(index, event(20_000)) == []
    assert reached(index, event(599), channel=Y) == [(1, "channels")]
    assert reached(index, event(600), channel=Y) == []
    index.remove_connection(1)
    assert_empty(index)


def test_the_cost_of_a_connection_is_what_its_subscriptions_hold():
    index = SubscriptionIndex()
    assert index.cost(1) == 0
    subscribe(index, 1, "a", Filter(authors=frozenset(AUTHORS), tags={"e": frozenset("xyz")}))
    assert index.cost(1) == 1 + 5 + 1
    subscribe(index, 1, "b", kinds(1, 2, channel=X), channels=[X, Y])
    assert index.cost(1) == 7 + 1 + 3 + 4
    index.remove(1, "a")
    assert index.cost(1) == 8
    assert index.cost(2) == 0
    index.remove_connection(1)


class IndexMachine(RuleBasedStateMachine):
    """Every operation is done on the index and on a list that is searched from end to end."""

    @initialize()
    def start(self):
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
        assert self.index.remove_channel_subscriptions(connection, channel) == [sub.sub_id for sub in dropped]

    @rule(
        kind=st.integers(0, 3),
        author=st.sampled_from(AUTHORS),
        created_at=st.integers(0, 4),
        channel=st.none() | st.sampled_from([X, Y]),
        tagged=st.booleans(),
    )
    def match(self, kind, author, created_at, channel, tagged):
        sent = event(kind, channel=channel if tagged else None, author=author, created_at=created_at)
        expected = [
            sub
            for sub in self.model
            if (sub.channels is None if channel is None else sub.channels is not None and channel in sub.channels)
            and matches_any(sub.filters, sent, channel)
        ]
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


IndexMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestIndexAgainstAList = IndexMachine.TestCase
