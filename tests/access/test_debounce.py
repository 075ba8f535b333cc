"""Now and then, and not for more keys than there is room for."""

from __future__ import annotations

from relay.access.debounce import Debounce


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_due_again_after_its_time() -> None:
    clock = Clock()
    debounce = Debounce(seconds=300, capacity=10, clock=clock)
    assert debounce.due("a")
    assert debounce.due("a"), "asking is not doing"
    debounce.done("a")
    assert not debounce.due("a")
    assert debounce.due("b")
    clock.now = 299.9
    assert not debounce.due("a")
    clock.now = 300
    assert debounce.due("a")


def test_the_one_done_longest_ago_is_forgotten() -> None:
    clock = Clock()
    debounce = Debounce(seconds=300, capacity=2, clock=clock)
    for now, key in enumerate("abac"):
        clock.now = now
        debounce.done(key)
    assert len(debounce) == 2
    assert [debounce.due(key) for key in "abc"] == [False, True, False]
