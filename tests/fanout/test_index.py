"""The subscription index: what each event reaches, that nothing leaks between channels, that nothing is left over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.fanout.index import KEYS_MAX, Subscription, SubscriptionIndex
from relay.nostr.filter import Filter
from tests.fanout.indexing import (
    AUTHORS,
    X,
    Y,
    assert_empty,
    end_about,
    event,
    examined,
    kinds,
    reached,
    subscribe,
    tables,
    tagged,
)

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
    assert tables(index) == {"kinds": [1], "anything": [None]}
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


def test_get():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", kinds(1), Filter())
    assert index.get(1, "s") is sub
    assert index.get(1, "other") is None
    assert index.get(2, "s") is None


def test_remove_from_index_targeted():
    index = SubscriptionIndex()
    subscribe(index, 1, "x", kinds(9), channels=[X])
    kept = subscribe(index, 1, "y", kinds(9), channels=[Y])
    index.remove(1, "x")
    assert list(index._channels) == [Y]
    assert index._channels[Y].tables == {"kinds": {9: {kept: None}}}


def test_kindless_channel_subscription_receives_all_kinds():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    assert [reached(index, event(kind, channel=X), X) for kind in (0, 9, 40002)] == [[(1, "s")]] * 3
    assert reached(index, event(9, channel=Y), Y) == []


def test_kindless_remove_cleans_wildcard_index():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    assert tables(index, X) == {"anything": [None]}
    index.remove(1, "s")
    assert_empty(index)


def test_kindless_and_kinded_coexist():
    index = SubscriptionIndex()
    subscribe(index, 1, "all", Filter(), channels=[X])
    subscribe(index, 2, "notes", kinds(1), channels=[X])
    assert sorted(reached(index, event(1, channel=X), X)) == [(1, "all"), (2, "notes")]
    assert reached(index, event(0, channel=X), X) == [(1, "all")]


def test_kindless_replace():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", Filter(), channels=[X])
    new = subscribe(index, 1, "s", kinds(9), channels=[X])
    assert index._channels[X].tables == {"kinds": {9: {new: None}}}


def test_empty_kinds_matches_nothing():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", kinds(), channels=[X])
    subscribe(index, 1, "g", kinds())
    assert index.count == 2
    assert index.statistics().index_keys == 0
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
    assert end_about(index, 1, X) == ["x1", "x2"]
    assert end_about(index, 1, X) == []
    assert end_about(index, 3, X) == []
    assert reached(index, event(9, channel=X), X) == [(2, "x1")]
    assert reached(index, event(9, channel=Y), Y) == [(1, "y")]
    assert reached(index, event(9)) == [(1, "global")]


# ---- beyond the original


def test_a_subscription_to_two_channels_is_live_in_both_and_evicted_whole():
    index = SubscriptionIndex()
    subscribe(index, 1, "both", kinds(9, channel=X), kinds(9, channel=Y), channels=[X, Y])
    assert reached(index, event(9, channel=X), X) == [(1, "both")]
    assert reached(index, event(9, channel=Y), Y) == [(1, "both")]
    assert end_about(index, 1, Y) == ["both"]
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
        subscribe(index, connection, "author", Filter(kinds=frozenset([1]), authors=frozenset([f"{connection:064x}"])))
        subscribe(index, connection, "id", Filter(ids=frozenset([f"{1 << 200 | connection:064x}"])))
        subscribe(index, connection, "p", Filter(kinds=frozenset([1]), tags={"p": frozenset([f"{connection:064x}"])}))
    for wanted, channel in ((event(9, channel=X), X), (event(1), None)):
        before = index.statistics()
        assert len(index.match(wanted, channel)) == 1
        after = index.statistics()
        assert after.examined - before.examined == 1
        assert after.matched - before.matched == 1


# ---- under which field a filter stands

ME, FRIEND = "1" * 64, "2" * 64
NOTE = "e" * 64


def test_each_filter_stands_under_its_most_selective_field():
    for wanted, expected in (
        (Filter(ids=frozenset([NOTE]), authors=frozenset([ME]), kinds=frozenset([1])), {"ids": [NOTE]}),
        (Filter(authors=frozenset([ME, FRIEND]), kinds=frozenset([1])), {"authors": [ME, FRIEND]}),
        (Filter(kinds=frozenset([1, 7]), tags=tagged(e="x y z", p="me").tags), {"p": ["me"]}),
        (Filter(kinds=frozenset([9, 7]), tags=tagged(h=X).tags), {"kinds": [7, 9]}),
        (tagged(h=X, P="a b"), {"P": ["a", "b"]}),
        (tagged(h=X), {"anything": [None]}),
        (Filter(since=5), {"anything": [None]}),
    ):
        index = SubscriptionIndex()
        subscribe(index, 1, "s", wanted)
        assert tables(index) == expected


def test_a_filter_that_asks_for_none_of_something_stands_nowhere():
    for wanted in (
        Filter(ids=frozenset(), kinds=frozenset([1])),
        Filter(authors=frozenset()),
        Filter(kinds=frozenset([1]), tags={"p": frozenset()}),
        Filter(tags={"h": frozenset()}),
    ):
        index = SubscriptionIndex()
        subscribe(index, 1, "s", wanted)
        assert tables(index) == {}
        subscribe(index, 1, "s", wanted, kinds(2))
        assert tables(index) == {"kinds": [2]}


def test_several_filters_stand_under_a_field_each_and_give_one_hit():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", Filter(authors=frozenset([ME])), tagged(p=f"{ME} {FRIEND}"), kinds(1))
    assert tables(index) == {"authors": [ME], "p": [ME, FRIEND], "kinds": [1]}
    everything = event(1, ["p", ME], ["p", FRIEND], author=ME)
    assert index.match(everything, None) == [sub]
    assert examined(index, everything) == 1
    for one in (event(2, author=ME), event(2, ["p", FRIEND]), event(1)):
        assert index.match(one, None) == [sub]
    assert index.match(event(2, ["e", ME]), None) == []
    index.remove(1, "s")
    assert_empty(index)


def test_filters_that_share_keys_stand_under_them_once():
    index = SubscriptionIndex()
    sub = subscribe(index, 1, "s", tagged(p="a b"), tagged(p="b c", e="1 2 3"))
    assert tables(index) == {"p": ["a", "b", "c"]}
    assert sub.cost == 1 + 7 + 1 + 3
    index.remove(1, "s")
    assert_empty(index)


def test_one_filter_for_everything_makes_other_keys_useless():
    index = SubscriptionIndex()
    subscribe(index, 1, "s", tagged(p="a b"), Filter(), kinds(1))
    assert tables(index) == {"anything": [None]}


def test_a_field_with_too_many_keys_gives_way_to_the_next():
    index = SubscriptionIndex()
    crowd = frozenset(f"{number:064x}" for number in range(KEYS_MAX + 1))
    subscribe(index, 1, "fits", Filter(authors=frozenset(sorted(crowd)[1:])))
    assert len(tables(index)["authors"]) == KEYS_MAX
    index.remove(1, "fits")
    subscribe(index, 1, "tag", Filter(ids=crowd, authors=crowd, tags={"p": frozenset("ab")}, kinds=frozenset([1])))
    assert tables(index) == {"p": ["a", "b"]}
    subscribe(index, 1, "tag", Filter(authors=crowd, tags={"p": crowd}, kinds=frozenset([1])))
    assert tables(index) == {"kinds": [1]}
    assert reached(index, event(1, ["p", min(crowd)], author=max(crowd))) == [(1, "tag")]
    assert reached(index, event(1, ["p", min(crowd)], author=AUTHORS[0])) == []


def test_all_filters_and_channels_of_a_subscription_share_the_bound():
    index = SubscriptionIndex()
    authors = [frozenset(f"{start + number:064x}" for number in range(600)) for start in (0, 600)]
    subscribe(index, 1, "s", *[Filter(authors=some, kinds=frozenset([1])) for some in authors])
    assert {name: len(keys) for name, keys in tables(index).items()} == {"authors": 600, "kinds": 1}
    subscribe(index, 1, "s", Filter(authors=authors[0], kinds=frozenset([1])), channels=[X, Y])
    assert tables(index, X) == tables(index, Y) == {"kinds": [1]}
    assert index.statistics().index_keys == 2


def test_an_event_is_only_compared_with_those_who_ask_for_something_it_has():
    index = SubscriptionIndex()
    for number in range(100):
        other = f"{number:064x}"
        subscribe(index, number, "author", Filter(authors=frozenset([other]), kinds=frozenset([1])), channels=[X])
        subscribe(index, number, "e", Filter(kinds=frozenset([1]), tags={"e": frozenset([other])}), channels=[X])
    sub = subscribe(index, "me", "e", tagged(e=NOTE), channels=[X])
    sent = event(1, ["e", NOTE], ["e", "0" * 64], ["p", ME])
    assert set(index.match(sent, X)) == {sub, index.get(0, "e")}
    assert examined(index, sent, X) == 2
    assert index.match(sent, Y) == index.match(sent, None) == []


class Counted(Subscription):
    """Counts how often it is looked up or compared in any of the index's tables."""

    touched = 0

    def __hash__(self):
        Counted.touched += 1
        return id(self)

    def __eq__(self, other):
        Counted.touched += 1
        return self is other


MANY = frozenset(f"{10**9 + number:064x}" for number in range(KEYS_MAX + 1))


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(kinds=frozenset({9}), ids=MANY),
        Filter(kinds=frozenset({9}), authors=MANY),
        Filter(kinds=frozenset({9}), since=2000),
        Filter(kinds=frozenset({9}), until=500),
        Filter(kinds=frozenset({9}), tags={"t": MANY}),
    ],
    ids=["ids", "authors", "since", "until", "tags"],
)
@pytest.mark.parametrize("channel", [None, X])
def test_standing_under_a_kind_is_a_match_only_where_nothing_else_is_asked_for(wanted, channel):
    index = SubscriptionIndex()
    if channel is not None:
        wanted = replace(wanted, tags={**wanted.tags, "h": frozenset([channel])})
    narrow = subscribe(index, "narrow", "s", wanted, channels=channel and [channel])
    wide = subscribe(index, "wide", "s", kinds(9, channel=channel), channels=channel and [channel])
    assert tables(index, channel) == {"kinds": [9]}
    anytime = wanted.since is None and wanted.until is None
    assert (narrow.exact, wide.exact) == (not anytime, True)
    if narrow.exact:
        assert not narrow.since <= event(9).created_at <= narrow.until
        assert narrow.since in (0, wanted.since)
    assert reached(index, event(9, channel=channel), channel) == [("wide", "s")]


def test_an_event_that_names_another_channel_than_its_own_is_compared():
    index, channel = SubscriptionIndex(), "aaaaaaaa-1111-4111-8111-111111111111"
    subscribe(index, "c", "s", kinds(9, channel=channel), channels=[channel])
    assert reached(index, event(9, ["h", channel.upper()]), channel) == []
    assert reached(index, event(9, ["h", "elsewhere"]), channel) == []
    assert reached(index, event(9, ["h", "elsewhere"], ["h", channel]), channel) == [("c", "s")]
    assert reached(index, event(9), channel) == [("c", "s")]


@pytest.mark.parametrize("spelling", ["AAAAAAAA-1111-4111-8111-111111111111", "aaaaaaaa111141118111111111111111"])
def test_a_filter_that_spells_its_channel_otherwise_matches_text(spelling):
    index, channel = SubscriptionIndex(), "aaaaaaaa-1111-4111-8111-111111111111"
    sub = subscribe(index, "c", "s", kinds(9, channel=spelling), channels=[channel])
    assert not sub.exact
    assert reached(index, event(9, channel=channel), channel) == []
    assert reached(index, event(9), channel) == []
    assert reached(index, event(9, channel=spelling), channel) == [("c", "s")]


def test_closing_costs_only_its_own_keys():
    index = SubscriptionIndex()
    wanted = (kinds(1), Filter(authors=frozenset([ME])), tagged(p="a b"))
    for number in range(1000):
        index.add(Counted(number, "s", wanted, None, b""))
    for number in (500, 0, 999):
        Counted.touched = 0
        index.remove(number, "s")
        assert Counted.touched <= 1 + 4  # the family, and under one kind, one author and two values
    assert len(index.match(event(1), None)) == 997


# ---- bounds


def test_too_many_kinds_stand_under_anything_and_still_match_exactly():
    index = SubscriptionIndex()
    many = frozenset(range(20_000))
    subscribe(index, 1, "global", Filter(kinds=many))
    subscribe(index, 1, "channels", Filter(kinds=frozenset(range(600))), channels=[X, Y])
    assert index.statistics().index_keys == 3
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
    assert index.cost(1) == 1 + 5 + 1 + 2
    subscribe(index, 1, "b", kinds(1, 2, channel=X), channels=[X, Y])
    assert index.cost(1) == 9 + 1 + 3 + 2 * (1 + 2)
    index.remove(1, "a")
    assert index.cost(1) == 10
    assert index.cost(2) == 0
    index.remove_connection(1)
