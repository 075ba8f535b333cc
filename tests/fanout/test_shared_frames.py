"""Frames that are made once: the same bytes as frames made one by one, for every length of event and prefix."""

from __future__ import annotations

import pytest

from relay.fanout.items import Live
from relay.fanout.shared_frames import SharedFrames
from relay.nostr.event import Event
from relay.nostr.messages import event_frame, event_prefix, ws_frame

# Around 126 and 65 536 bytes a frame has a longer head (RFC 6455 §5.2).
SIZES = [0, 1, 60, 1000, 65_536]
NAMES = ["s", "t", "subscription", 'a"\\é', "x" * 64]


def live(json: bytes, channel: str | None = None) -> Live:
    made = Event("0" * 64, "1" * 64, 1, 1, [], "", "2" * 128)
    made._json = json
    return Live(made, channel, None)


def expected(prefix: bytes, lives: list[Live]) -> list[tuple[bytes, str | None]]:
    return [(ws_frame(event_frame(prefix, each.event.json)), each.channel_id) for each in lives]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_they_are_the_frames_that_single_ones_would_be(count: int) -> None:
    lives = [live(b"{" + b"x" * size + b"}", f"channel {size}") for size in SIZES[:count]]
    shared = SharedFrames(lives)
    assert shared.count == count
    for name in [*NAMES, *NAMES]:  # by turns, so that nothing of the last one is left
        prefix = event_prefix(name)
        assert shared.joined(prefix) == b"".join(frame for frame, _ in expected(prefix, lives))
        assert shared.apart(prefix) == expected(prefix, lives)
    for name in NAMES:
        assert shared.apart(event_prefix(name)) == expected(event_prefix(name), lives)


@pytest.mark.parametrize("over", [126, 1 << 16])
@pytest.mark.parametrize("distance", [-1, 0, 1])
def test_heads_change_at_the_right_length(over: int, distance: int) -> None:
    prefix = event_prefix("s")
    lives = [live(b" " * (over + distance - len(prefix) - 1)), live(b"{}")]
    assert SharedFrames(lives).joined(prefix) == b"".join(frame for frame, _ in expected(prefix, lives))


def test_equal_names_of_several_clients_share_one_copy() -> None:
    shared = SharedFrames([live(b"{}"), live(b"{}")])
    one, other = event_prefix("s"), event_prefix("s")
    assert one is not other
    assert shared.joined(one) is shared.joined(other)
    assert shared.apart(one) is shared.apart(other)
    assert shared.joined(event_prefix("t")) != shared.joined(one)
    assert shared.apart(one) == expected(one, [live(b"{}"), live(b"{}")])
